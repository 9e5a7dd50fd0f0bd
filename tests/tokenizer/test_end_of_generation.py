"""Which tokens end a generation, by the files' keys and by the tokens' texts."""

import numpy as np
import pytest

from rfjax.tokenizer.attribute import Attribute
from rfjax.tokenizer.vocabulary import read_vocabulary

# Tokens that end a generation, others, and keys, in files of each family. llama.cpp finds the same
# (`llama_vocab_is_eog` over files with these tokens, as control tokens and as normal ones).
FAMILIES = {
    "llama 2": (["</s>"], ["<unk>", "<s>"], {"eos": "</s>"}),
    "llama 3": (
        ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
        ["<|begin_of_text|>", "<|python_tag|>"],
        {"eos": "<|eot_id|>"},
    ),
    "llama 4": (
        ["<|end_of_text|>", "<|eot|>"],
        ["<|begin_of_text|>", "<|eom|>"],
        {"eos": "<|eot|>"},
    ),
    "llama 4 with eot": (
        ["<|end_of_text|>", "<|eom|>", "<|eot|>"],
        ["<|begin_of_text|>"],
        {"eos": "<|end_of_text|>", "eot": "<|eot|>", "eom": "<|eom|>"},
    ),
    "qwen": (
        ["<|endoftext|>", "<|im_end|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
        ["<|im_start|>"],
        {"eos": "<|im_end|>"},
    ),
    "deepseek coder": (
        ["<｜end▁of▁sentence｜>", "<|EOT|>"],
        ["<｜fim▁hole｜>", "<｜begin▁of▁sentence｜>"],
        {"eos": "<|EOT|>"},
    ),
    "deepseek 3": (
        ["<｜end▁of▁sentence｜>"],
        ["<｜begin▁of▁sentence｜>", "<think>", "</think>"],
        {"eos": "<｜end▁of▁sentence｜>"},
    ),
    "gemma 3": (
        ["<eos>", "<end_of_turn>"],
        ["<pad>", "<bos>", "<start_of_turn>"],
        {"eos": "<eos>"},
    ),
    "gemma 4": (
        ["<eos>", "<turn|>", "<|tool_response>"],
        ["<pad>", "<bos>", "</s>", "<|turn>"],
        {"eos": "<eos>"},
    ),
    "phi 3": (["<|endoftext|>", "<|end|>", "</s>"], ["<|assistant|>"], {"eos": "<|endoftext|>"}),
    "gpt-oss": (
        ["<|endoftext|>", "<|return|>", "<|call|>"],
        ["<|startoftext|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>"],
        {"eos": "<|return|>"},
    ),
    "solar open": (
        ["<|endoftext|>", "<|flush|>", "<|calls|>"],
        ["<|begin|>", "<|end|>", "<|think|>"],
        {"eos": "<|flush|>"},
    ),
    "mistral": (
        ["</s>"],
        ["<unk>", "<s>", "[INST]", "[/INST]", "[THINK]", "[/THINK]"],
        {"eos": "</s>"},
    ),
    "granite": (
        ["<|end_of_text|>", "<fim_pad>", "<reponame>"],
        ["<|start_of_role|>"],
        {"eos": "<|end_of_text|>"},
    ),
    "command-r": (
        ["<PAD>", "<|END_OF_TURN_TOKEN|>"],
        ["<EOS_TOKEN>"],
        {"eos": "<|END_OF_TURN_TOKEN|>"},
    ),
    "glm 4": (
        ["<|endoftext|>", "<|user|>", "<|observation|>"],
        ["<|code_prefix|>"],
        {"eos": "<|endoftext|>", "eot": "<|user|>", "eom": "<|observation|>"},
    ),
    "exaone": (["[PAD]", "[|endofturn|]"], ["[BOS]"], {"eos": "[|endofturn|]"}),
    "seed": (["<seed:eos>"], ["<seed:bos>", "<seed:pad>", "<seed:think>"], {"eos": "<seed:eos>"}),
    "kimi": (["[EOS]", "[EOT]", "[PAD]", "<|im_end|>"], ["[BOS]"], {"eos": "<|im_end|>"}),
    "codellama": (["</s>", "<EOT>"], ["<s>", "▁<PRE>", "▁<EOT>"], {"eos": "</s>"}),
    "minimax": (["[e~["], ["]~b]"], {"eos": "[e~["}),
    "plamo": (["<|plamo:eos|>"], ["</s>"], {"eos": "<|plamo:eos|>"}),
    "apertus": (
        ["</s>", "<|assistant_end|>"],
        ["<s>"],
        {"eos": "</s>", "eot": "<|assistant_end|>"},
    ),
}


def bpe(tokens, types=None, **keys):
    """A BPE vocabulary of just these tokens."""
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tuple(tokens),
        "tokenizer.ggml.merges": (),
    }
    if types is not None:
        metadata["tokenizer.ggml.token_type"] = np.array(types, np.int32)
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def ends(*tokens, types=None, **keys):
    vocabulary = read_vocabulary(bpe(tokens, types, **keys))
    return {vocabulary.texts[i] for i in vocabulary.end_ids}


@pytest.mark.parametrize("kind", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_that_end_in_a_family(family, kind):
    expected, others, keys = FAMILIES[family]
    tokens = [*"abcdefghijkl", *expected, *others]
    ids = {f"{role}_token_id": tokens.index(text) for role, text in keys.items()}
    types = [1] * 12 + [kind] * (len(tokens) - 12)
    assert ends(*tokens, types=types, **ids) == set(expected)


@pytest.mark.parametrize(
    "text", ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>", "<|endoftext|>"]
)
def test_well_known_texts_end_and_are_control(text):
    vocabulary = read_vocabulary(bpe(["a", text], types=[1, 1]))
    assert vocabulary.end_ids == {1}
    assert vocabulary.attributes[1] & Attribute.CONTROL


def test_ids_in_the_file_end():
    keys = {"eos_token_id": 0, "eot_token_id": 1, "eom_token_id": 2, "fim_pad_token_id": 3}
    assert ends("a", "b", "c", "d", "e", **keys) == {"a", "b", "c", "d"}


def test_fill_in_the_middle_is_found_by_text():
    vocabulary = read_vocabulary(bpe(["a", "<fim_prefix>", "<|file_sep|>", "<fim_pad>"]))
    assert vocabulary.special_ids == {"fim_pre": 1, "fim_sep": 2, "fim_pad": 3}
    assert vocabulary.end_ids == {2, 3}


def test_old_keys_for_fill_in_the_middle():
    keys = {"prefix_token_id": 0, "suffix_token_id": 1, "middle_token_id": 2}
    special = read_vocabulary(bpe("abc", **keys)).special_ids
    assert special == {"fim_pre": 0, "fim_suf": 1, "fim_mid": 2}


def test_harmony_ends_turns_not_messages():
    assert ends("<|end|>", "<|return|>", "<|call|>") == {"<|return|>", "<|call|>"}
    vocabulary = read_vocabulary(
        bpe(["<|end|>", "<|return|>", "<|call|>", "<|channel|>"], types=[3] * 4)
    )
    assert vocabulary.attributes[[0, 3]].tolist() == [Attribute.USER_DEFINED] * 2


def test_solar_ends_turns_not_messages():
    assert ends("<|end|>", "<|flush|>", "<|calls|>") == {"<|flush|>", "<|calls|>"}


def test_gemma_has_a_normal_html_tag():
    assert ends("</s>", "<|tool_response>") == {"<|tool_response>"}
