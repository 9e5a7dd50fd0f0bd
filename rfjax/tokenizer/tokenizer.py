"""The public tokenizer: text to token ids and back, with a model's own conventions."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rfjax.errors import ModelFormatError, RequestError, UnsupportedError
from rfjax.tokenizer.bpe import BpeModel
from rfjax.tokenizer.chat import ChatTemplates, read_templates
from rfjax.tokenizer.chat_prompt import ChatPrompt, check_arguments, part_history
from rfjax.tokenizer.decoding import Pieces, StreamDecoder, checked
from rfjax.tokenizer.partition import Partition
from rfjax.tokenizer.reasoning import find_reasoning
from rfjax.tokenizer.spm import SpmModel
from rfjax.tokenizer.ugm import UgmModel
from rfjax.tokenizer.vocabulary import Vocabulary, read_vocabulary
from rfjax.tokenizer.wpm import WpmModel

if TYPE_CHECKING:
    from rfjax.io.gguf import GGUFFile


class _Model(Protocol):
    def encode(self, text: str) -> list[int]: ...


_MODELS = {"spm": SpmModel, "bpe": BpeModel, "wpm": WpmModel, "ugm": UgmModel}


def load_tokenizer(source: str | os.PathLike[str] | GGUFFile) -> Tokenizer:
    """Builds the tokenizer that a GGUF file describes.

    Args:
      source: Path of a GGUF file, or one already read with `rfjax.io.gguf.read_gguf`.

    Returns:
      The tokenizer. It holds no reference to the file.

    Raises:
      ModelFormatError: The file or its vocabulary is malformed.
      UnsupportedError: The file carries no vocabulary (feed token ids instead), or one of a kind
        or with a pre-tokenizer that this version does not know.
    """
    if isinstance(source, str | os.PathLike):
        from rfjax.io.gguf import read_gguf

        source = read_gguf(source)
    try:
        return Tokenizer(read_vocabulary(source.metadata), read_templates(source.metadata))
    except (ModelFormatError, UnsupportedError) as error:
        raise type(error)(f"{source.path}: {error}") from error


class Tokenizer:
    """Encodes and decodes text as llama.cpp does with the same file.

    Built by `load_tokenizer`. Immutable, and safe to share between threads.
    """

    def __init__(self, vocabulary: Vocabulary, templates: Mapping[str, str]):
        self._vocabulary = vocabulary
        self._model: _Model = _MODELS[vocabulary.kind](vocabulary)
        self._partition = Partition(vocabulary)
        self._pieces = Pieces(vocabulary)
        self._templates = ChatTemplates(templates, self._special_texts(), vocabulary.ids)

    def __repr__(self) -> str:
        return f"Tokenizer(kind={self.kind!r}, vocab_size={self.vocab_size})"

    @property
    def kind(self) -> str:
        """Algorithm: `spm`, `bpe`, `wpm` or `ugm`."""
        return self._vocabulary.kind

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids are `0 .. vocab_size - 1`."""
        return len(self._vocabulary.texts)

    @property
    def bos_id(self) -> int | None:
        """Beginning of sequence (`[CLS]` of a BERT vocabulary)."""
        return self._vocabulary.special_ids.get("bos")

    @property
    def eos_id(self) -> int | None:
        """End of sequence. To stop a generation use `eog_ids`, which has more."""
        return self._vocabulary.special_ids.get("eos")

    @property
    def unk_id(self) -> int | None:
        """Token for text that the vocabulary cannot spell."""
        return self._vocabulary.special_ids.get("unknown")

    @property
    def pad_id(self) -> int | None:
        """Padding."""
        return self._vocabulary.special_ids.get("padding")

    @property
    def sep_id(self) -> int | None:
        """Separator (BERT)."""
        return self._vocabulary.special_ids.get("seperator")

    @property
    def eog_ids(self) -> frozenset[int]:
        """Tokens that end a generation: end of sequence, of turn, of message.

        As llama.cpp determines it: those that the file names, and those with a text that ends a
        turn in some family of models (`<|im_end|>`, `<|eot_id|>`, `<end_of_turn>`, ...).
        """
        return self._vocabulary.end_ids

    @property
    def add_bos(self) -> bool:
        """Whether `encode` puts `bos_id` first by default."""
        return self._vocabulary.add_bos or self.kind == "wpm"

    @property
    def add_eos(self) -> bool:
        """Whether `encode` puts `eos_id` last by default."""
        return self._vocabulary.add_eos

    @property
    def chat_template(self) -> str | None:
        """Jinja source of the file's default chat template."""
        return self._templates.sources.get("default")

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """Jinja source of every chat template by name; the main one is `default`."""
        return self._templates.sources

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Turns text into token ids.

        Args:
          text: Any text, possibly empty. Nothing is normalised beyond what the vocabulary's kind
            asks for (BERT and unigram vocabularies only).
          add_special_tokens: Add BOS, EOS or BERT's `[CLS]` and `[SEP]` where the file says so.
            Off for text that a chat template has rendered, which holds its own.
          parse_special: Read the names of control tokens (`<|im_start|>`) as these tokens. Keep
            it off for text from outside, so that it cannot forge the structure of a chat.

        Returns:
          Token ids.

        Raises:
          RequestError: The text holds lone surrogates, so it is not Unicode text.
        """
        _check_text(text)
        special = self._vocabulary.special_ids
        wpm = self.kind == "wpm"
        ids: list[int] = []
        if add_special_tokens and self.add_bos:
            ids.append(special["bos"])
        prefix = self.kind == "spm" and self._vocabulary.add_space_prefix
        fresh = True  # at the start, or right after a special token
        for part in self._partition(text, parse_special):
            if isinstance(part, int):
                ids.append(part)
                fresh = True
            else:
                ids += self._model.encode(" " + part if prefix and fresh else part)
                fresh = False
        if add_special_tokens and (wpm or self.add_eos):
            ids.append(special["seperator" if wpm else "eos"])
        return ids

    def decode(
        self,
        ids: Iterable[int],
        *,
        skip_special_tokens: bool = True,
        continuation: bool = False,
    ) -> str:
        """Turns token ids into text.

        `decode(encode(text)) == text` wherever the vocabulary keeps the text whole; BERT and
        unigram vocabularies normalise it. Spaces before punctuation are not cleaned up.

        Args:
          ids: Token ids.
          skip_special_tokens: Leave out control and unknown tokens. User-defined tokens are text.
          continuation: The ids continue a text that came before. Otherwise the space that
            encoding put before the first word of a sentencepiece vocabulary is dropped again.

        Returns:
          The text; bytes that are not UTF-8 become U+FFFD.

        Raises:
          RequestError: An id is outside the vocabulary.
        """
        decoder = self.stream(skip_special_tokens=skip_special_tokens, continuation=continuation)
        return decoder.push(ids) + decoder.flush()

    def decode_bytes(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> bytes:
        """The bytes that tokens stand for, in order, with nothing dropped or replaced.

        Unlike `decode` this is additive: the bytes of `a + b` are those of `a`, then those of `b`.

        Raises:
          RequestError: An id is outside the vocabulary.
        """
        return b"".join(
            self._pieces[id_]
            for id_ in checked(ids, self.vocab_size)
            if not (skip_special_tokens and self._pieces.is_hidden(id_))
        )

    def stream(
        self, *, skip_special_tokens: bool = True, continuation: bool = False
    ) -> StreamDecoder:
        """A decoder for tokens that come one by one; the arguments are those of `decode`."""
        return StreamDecoder(
            self._pieces,
            self.vocab_size,
            skip_special_tokens=skip_special_tokens,
            drop_prefix=self.kind == "wpm"
            or (self.kind in ("spm", "ugm") and self._vocabulary.add_space_prefix),
            at_start=not continuation,
        )

    def id_to_piece(self, id_: int) -> str:
        """A token's text as the vocabulary spells it (`▁the`, `Ġthe`, `<0x0A>`).

        Raises:
          RequestError: The id is outside the vocabulary.
        """
        (id_,) = checked((id_,), self.vocab_size)
        return self._vocabulary.texts[id_]

    def piece_to_id(self, piece: str) -> int | None:
        """The id of a token by the text that the vocabulary has for it; None if there is none."""
        return self._vocabulary.ids.get(piece)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        now: datetime.datetime | None = None,
        **kwargs: Any,
    ) -> str:
        """Renders a conversation with the model's chat template.

        The result holds the template's own special tokens: encode it with
        `add_special_tokens=False, parse_special=True`.

        Args:
          messages: `{"role": ..., "content": ...}` and what else the template reads. A system
            message that the template refuses is put before the first user message's text.
          add_generation_prompt: End with the header of the assistant's answer.
          tools: JSON schemas of functions that the model may call.
          documents: Documents for retrieval-augmented generation.
          chat_template: Name of one of `chat_templates`, else of a family of models of
            `rfjax.tokenizer.families`, else Jinja source. None takes the file's default, or its
            `tool_use` where there is one and tools are given.
          now: What the template takes for the time; the local time if None.
          **kwargs: Further variables for the template, such as `enable_thinking`.

        Returns:
          The text of the prompt.

        Raises:
          RequestError: There is no template, or none of that name, the messages have the wrong
            form, or the template refuses them; its own words are in the message.
          ModelFormatError: The template is not valid Jinja.
        """
        return self._templates.render(
            messages,
            chat_template=chat_template,
            now=now,
            variables=kwargs
            | {
                "tools": list(tools) if tools is not None else None,
                "documents": list(documents) if documents is not None else None,
                "add_generation_prompt": add_generation_prompt,
            },
        )

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> ChatPrompt:
        """Renders and encodes a conversation, with what is needed to read the reply.

        Args:
          messages: As for `apply_chat_template`. Reasoning in earlier replies is taken out of
            their text and left to the template (`rfjax.tokenizer.chat_prompt.part_history`).
          template: As `chat_template` there. With the name of a family, what ends a turn in it
            ends the reply as well.
          template_kwargs: Further arguments of `apply_chat_template`.

        Returns:
          The prompt, its tokens, and how the reply ends and is parted.

        Raises:
          RequestError, ModelFormatError: As `apply_chat_template`.
        """
        arguments = check_arguments(template_kwargs or {})
        source = self._templates.source(template, tools=bool(arguments.get("tools")))
        reasoning = find_reasoning(source, self._vocabulary.ids)
        if not isinstance(messages, str | Mapping) and isinstance(messages, Sequence):
            messages = part_history(messages, reasoning, source)
        text = self.apply_chat_template(messages, chat_template=template, **arguments)
        ids = self.encode(text, add_special_tokens=False, parse_special=True)
        if self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        end = self._templates.end(template)
        end_id = self.piece_to_id(end)
        return ChatPrompt(
            text=text,
            token_ids=ids,
            stop_token_ids=() if end_id is None or end_id in self.eog_ids else (end_id,),
            stop=(end,) if end and end_id is None else (),
            reasoning=reasoning,
            opened=reasoning.opened(text),
        )

    def _special_texts(self) -> dict[str, str]:
        names = {
            "bos_token": "bos",
            "eos_token": "eos",
            "unk_token": "unknown",
            "sep_token": "seperator",
            "pad_token": "padding",
            "mask_token": "mask",
        }
        special = self._vocabulary.special_ids
        return {
            name: self._vocabulary.texts[special[role]]
            for name, role in names.items()
            if role in special
        }


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise RequestError(f"text to encode is a str; got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text holds a lone surrogate {text[error.start]!r} at character {error.start}; "
            "expected Unicode text; decode its bytes with errors='replace'"
        ) from error
