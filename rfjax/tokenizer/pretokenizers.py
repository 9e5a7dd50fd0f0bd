"""How each BPE vocabulary splits text into words before merging: one row per `tokenizer.ggml.pre`.

A word boundary is never merged across, so a wrong pattern silently changes the tokens of a model.
The patterns are those of the models' own `tokenizer.json`, in Oniguruma's dialect, with llama.cpp's
reading of them where the two differ, because files and reference numbers come from there:
contractions are matched case by case instead of with `(?i:)`, and classes of upper and lower case
letters tell ASCII letters apart only (marked APPROXIMATE below).
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import types
from collections.abc import Mapping
from typing import Literal

from rfjax.errors import UnsupportedError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Split:
    """One splitting pass over every piece that the passes before it left.

    Attributes:
      pattern: Regular expression in Oniguruma's Ruby dialect.
      behavior: `isolated` makes every match and every gap a piece; `merged_with_previous` appends
        a match to the gap before it.
    """

    pattern: str
    behavior: Literal["isolated", "merged_with_previous"] = "isolated"


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """What a `tokenizer.ggml.pre` name stands for.

    Attributes:
      splits: Passes, in order.
      ignore_merges: A word that is a token as a whole is taken without looking at the merges.
      add_bos: Default of `tokenizer.ggml.add_bos_token`.
      default_bos: Whether the historic default BOS id (11) holds where the file names none.
      byte_level: Words are spelled in GPT-2's byte alphabet. Otherwise the vocabulary is spelled
        as sentencepiece does: U+2581 for a space and `<0xXX>` for bytes out of vocabulary.
    """

    splits: tuple[Split, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    default_bos: bool = True
    byte_level: bool = True


_APOSTROPHE = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
# APPROXIMATE: [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] and [\p{Ll}\p{Lm}\p{Lo}\p{M}] in the models' files.
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
_MARKED_UPPER, _MARKED_LOWER = r"[\p{L}\p{M}&&[^a-z]]", r"[\p{L}\p{M}&&[^A-Z]]"
_HAN = (
    r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}"
    r"\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B820}-\x{2CEAF}\x{2CEB0}-\x{2EBEF}"
    r"\x{2F800}-\x{2FA1F}"
)
_ASCII_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_CJK_RUN = "[一-龥\u3040-ゟ゠-ヿ]+"
# The middle range spans the spaces of U+2000 and U+3000, which llama.cpp does not count in.
_CHINESE_KOREAN_RUN = r"[一-龥ࠀ-一가-\x{D7FF}&&[^\s]]+"
_CASED_LETTERS = (
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}"
    r"\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}"
    r"\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}"
    r"\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}"
    r"\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}"
    r"\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}"
    r"\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}"
    r"\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}"
    r"\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}"
    r"\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}"
    r"\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}"
    r"\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}"
    r"\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}"
    r"\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}"
    r"\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}"
    r"\x{1E900}-\x{1E943}"
)


def _cased_words(upper: str, lower: str, contractions: bool) -> str:
    """Words as GPT-4o and Tekken cut them: at a change from lower to upper case."""
    tail = f"(?:{_APOSTROPHE})?" if contractions else ""
    lead = r"[^\r\n\p{L}\p{N}]?"
    return f"{lead}{upper}*{lower}+{tail}|{lead}{upper}+{lower}*{tail}"


def _splits(*patterns: str) -> tuple[Split, ...]:
    return tuple(Split(pattern) for pattern in patterns)


def _word_pattern(digits: str, contractions: bool = True) -> str:
    """The family that Llama 3 made common; `digits` is how long a number may get."""
    head = f"(?:{_APOSTROPHE})|" if contractions else ""
    return f"{head}{_LETTERS}|{digits}|{_PUNCTUATION}|{_SPACES}"


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = _word_pattern(r"\p{N}{1,3}")
_QWEN2 = _word_pattern(r"\p{N}")
_DEEPSEEK3_WORDS = (
    rf"{_ASCII_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_SENTENCE = r" ?[^(\s|.,!?…。，、।۔،)]+"
_LINES = r"[^\n]+|\n+"
# Groups of three digits counted from the right; the text before them stays in the first group.
_DIGITS_FROM_RIGHT = Split(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", "merged_with_previous")

_DIGIT_GPT2 = PreTokenizer(_splits(r"\p{N}", _GPT2))
_PLAIN_GPT2 = PreTokenizer(_splits(_GPT2))
_LLAMA3_PRE = PreTokenizer(_splits(_LLAMA3), ignore_merges=True, add_bos=True)
_LLAMA3_MERGING = PreTokenizer(_splits(_LLAMA3))
_QWEN2_PRE = PreTokenizer(_splits(_QWEN2))
_DEEPSEEK3 = PreTokenizer(_splits(r"\p{N}{1,3}", _CJK_RUN, _DEEPSEEK3_WORDS))
_BLOOM = PreTokenizer(_splits(_SENTENCE))
_GPT4O = PreTokenizer(
    _splits(
        _cased_words(_UPPER, _LOWER, contractions=True)
        + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )
)
# APPROXIMATE: without a change of case, so a word runs as long as letters and marks do.
_UNCASED_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{_APOSTROPHE})?"
_TINY_AYA = PreTokenizer(
    (
        _DIGITS_FROM_RIGHT,
        Split(
            rf"{_UNCASED_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
        ),
    )
)
_BAILING = PreTokenizer(
    _splits(
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )
)
_CHATGLM = PreTokenizer(_splits(_LLAMA3), default_bos=False)
_GLM4 = PreTokenizer(_splits(_LLAMA3), default_bos=False, ignore_merges=True)
_RAW_LINES = PreTokenizer(_splits(_LINES), byte_level=False)

DEFAULT = PreTokenizer(_splits(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))

_ROWS: dict[str, PreTokenizer] = {
    "default": DEFAULT,
    # Llama 3 and those who took its pattern
    "llama3": _LLAMA3_PRE,
    "llama-v3": _LLAMA3_PRE,
    "llama-bpe": _LLAMA3_PRE,
    "falcon3": _LLAMA3_PRE,
    "falcon-h1": _LLAMA3_PRE,
    "pixtral": _LLAMA3_PRE,
    "midm-2.0": _LLAMA3_PRE,
    "lfm2": _LLAMA3_PRE,
    "jina-v5-nano": _LLAMA3_PRE,
    "dbrx": _LLAMA3_MERGING,
    "smaug-bpe": _LLAMA3_MERGING,
    "chatglm-bpe": _CHATGLM,
    "glm4": _GLM4,
    "glm5": _GLM4,
    "jais-2": PreTokenizer(
        _splits(
            f"(?:{_APOSTROPHE})|{_LETTERS}"
            rf"|\p{{N}}{{1,3}}|{_PUNCTUATION}|\s*[\r\n]+|"
            + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"|\s{1,2}(?!\S)|\s"
        )
    ),
    "minicpm5": PreTokenizer(_splits(r"\p{N}{1,3}", _word_pattern(r"\p{N}+")), ignore_merges=True),
    # Qwen
    "qwen2": _QWEN2_PRE,
    "deepseek-r1-qwen": _QWEN2_PRE,
    "kormo": _QWEN2_PRE,
    "f2llmv2": _QWEN2_PRE,
    "megrez": _QWEN2_PRE,
    "stablelm2": _QWEN2_PRE,
    "hunyuan": _QWEN2_PRE,
    "solar-open": _QWEN2_PRE,
    "grok-2": _QWEN2_PRE,
    "ufakzeka": PreTokenizer(_splits(_word_pattern(r"\p{N}", contractions=False))),
    "laguna": PreTokenizer(_splits(_LINES, _QWEN2)),
    "qwen35": PreTokenizer(
        _splits(
            rf"(?:{_APOSTROPHE})|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
        )
    ),
    "seed-coder": PreTokenizer(
        _splits(
            rf"(?:{_APOSTROPHE})|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",
        )
    ),
    "exaone-moe": PreTokenizer(
        _splits(
            rf"(?:{_APOSTROPHE})|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+"
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        )
    ),
    # DeepSeek
    "deepseek-llm": PreTokenizer(
        _splits(
            r"[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            r"\s?[!-/:-~！-／：-～‘-‟、-。]+",
            r"\s+\z",
            _CHINESE_KOREAN_RUN,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer(
        _splits(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE_KOREAN_RUN, r"\p{N}")
    ),
    "deepseek-v3": _DEEPSEEK3,
    "hunyuan-dense": _DEEPSEEK3,
    "joyai-llm": _DEEPSEEK3,
    "hy_v4": _DEEPSEEK3,
    "spark2_5": PreTokenizer(
        _splits(
            r"\p{N}{1,3}",
            _CJK_RUN,
            rf"{_ASCII_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
            r"|[\r\n]|\s+(?!\S)|\s+",
            r"\p{N}",
        )
    ),
    "afmoe": PreTokenizer(
        (
            _DIGITS_FROM_RIGHT,
            Split("[一-鿿㐀-䶿豈-\ufaff\u3040-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-\ud7af\u1100-ᇿ]+"),
            Split(_DEEPSEEK3_WORDS),
        )
    ),
    # GPT-2 and those who took its pattern, with or without single digits
    "gpt-2": _PLAIN_GPT2,
    "phi-2": _PLAIN_GPT2,
    "jina-es": _PLAIN_GPT2,
    "jina-de": _PLAIN_GPT2,
    "gigachat": _PLAIN_GPT2,
    "jina-v2-es": _PLAIN_GPT2,
    "jina-v2-de": _PLAIN_GPT2,
    "jina-v1-en": _PLAIN_GPT2,
    "jina-v2-code": _PLAIN_GPT2,
    "roberta-bpe": _PLAIN_GPT2,
    "a.x-4.0": _PLAIN_GPT2,
    "mellum": _PLAIN_GPT2,
    "modern-bert": _PLAIN_GPT2,
    "mpt": _PLAIN_GPT2,
    "olmo": _PLAIN_GPT2,
    "jais": _PLAIN_GPT2,
    "exaone4": _PLAIN_GPT2,
    "trillion": _PLAIN_GPT2,
    "granite-docling": _PLAIN_GPT2,
    "starcoder": _DIGIT_GPT2,
    "refact": _DIGIT_GPT2,
    "command-r": _DIGIT_GPT2,
    "smollm": _DIGIT_GPT2,
    "codeshell": _DIGIT_GPT2,
    "exaone": _DIGIT_GPT2,
    "minerva-7b": _DIGIT_GPT2,
    "mellum2": _DIGIT_GPT2,
    "falcon": PreTokenizer(_splits(r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "chameleon": PreTokenizer(
        _splits(
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    # GPT-4o, Tekken and kin: case-aware words
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
    "kanana2": _GPT4O,
    "talkie": _GPT4O,
    "minimax-m2": _GPT4O,
    "granite-embed-multi-97m": PreTokenizer(
        _splits(
            _cased_words(_MARKED_UPPER, _MARKED_LOWER, contractions=True)
            + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
        ),
        ignore_merges=True,
    ),
    "tekken": PreTokenizer(
        _splits(
            _cased_words(_UPPER, _LOWER, contractions=False)
            + rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
        ),
        ignore_merges=True,
        add_bos=True,
    ),
    "tiny_aya": _TINY_AYA,
    "cohere2moe": _TINY_AYA,
    "youtu": PreTokenizer(
        _splits(
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+",
            rf"{_UNCASED_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
        ),
        ignore_merges=True,
    ),
    "kimi-k2": PreTokenizer(
        _splits(
            rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+(?:{_APOSTROPHE})?"
            rf"|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_SPACES}"
        )
    ),
    # Others
    "bloom": _BLOOM,
    "poro-chat": _BLOOM,
    "gpt3-finnish": _BLOOM,
    "viking": PreTokenizer(_splits(_SENTENCE, r"\p{N}")),
    "superbpe": PreTokenizer(_splits(r"\p{N}+", r"(?=([0-9]{3})+(?![0-9]))")),
    "bailingmoe": _BAILING,
    "bailingmoe2": _BAILING,
    "llada-moe": _BAILING,
    # Sentencepiece vocabularies that are merged as BPE
    "gemma4": dataclasses.replace(_RAW_LINES, add_bos=True),
    "granite-embed-multi-311m": dataclasses.replace(_RAW_LINES, add_bos=True),
    "sarvam-moe": _RAW_LINES,
}
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = types.MappingProxyType(_ROWS)


def pre_tokenizer(name: str | None) -> PreTokenizer:
    """The row of the table for a file's `tokenizer.ggml.pre`.

    Args:
      name: The metadata value; None where the file has no such key.

    Returns:
      The row. A file that says nothing gets the default row and a warning, because its model was
      probably trained with another one.

    Raises:
      UnsupportedError: The name is not in the table.
    """
    if not name:
        logger.warning(
            "the file names no BPE pre-tokenizer (tokenizer.ggml.pre); using the default one: "
            "token boundaries, and so the model's quality, may suffer; convert the model again"
        )
        return DEFAULT
    row = PRE_TOKENIZERS.get(name)
    if row is None:
        close = difflib.get_close_matches(name, PRE_TOKENIZERS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UnsupportedError(
            f"unknown BPE pre-tokenizer: tokenizer.ggml.pre is {name!r}.{hint} "
            f"Supported: {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return row
