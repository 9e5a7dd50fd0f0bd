"""BPE vocabularies with merges, run by the tokenizers library."""

from __future__ import annotations

import logging
import re

from rfjax.errors import ModelFormatError, RequestError
from rfjax.tokenizer.alphabet import BYTE_ALPHABET, SPACE
from rfjax.tokenizer.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_NEWLINES = re.compile("(\n+)")
_RUNS = re.compile(r"\s+|\S+")
# Characters in one run of spaces or of anything else. The regular expressions of the library give
# up (and take the process along) after ten million steps back in one match.
MAX_RUN = 2 * 2**20


class BpeModel:
    """Splits text into words and merges each by rank."""

    def __init__(self, vocabulary: Vocabulary):
        import tokenizers
        from tokenizers import models, pre_tokenizers

        assert vocabulary.pre is not None
        self._ids = vocabulary.ids
        self._size = len(vocabulary.texts)
        self._byte_level = vocabulary.pre.byte_level
        known = dict(vocabulary.ids)
        if self._byte_level:
            # A vocabulary may lack some bytes. They leave no token, but they do keep their
            # neighbours apart, so they need ids of their own until the merges are done.
            missing = sorted(set(map(chr, BYTE_ALPHABET)) - known.keys())
            known |= {char: self._size + i for i, char in enumerate(missing)}
        self._complete = len(known) == self._size
        model = models.BPE(
            vocab=known,
            merges=_merges(vocabulary),
            ignore_merges=vocabulary.pre.ignore_merges,
            byte_fallback=not self._byte_level,
        )
        steps: list = [
            pre_tokenizers.Split(tokenizers.Regex(split.pattern), split.behavior)
            for split in vocabulary.pre.splits
        ]
        if self._byte_level:
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)

    def encode(self, text: str) -> list[int]:
        """Tokenizes plain text.

        Raises:
          RequestError: The text holds a run without a word boundary of more than `MAX_RUN`.
        """
        if len(text) > MAX_RUN:
            _check_runs(text)
        if self._byte_level:
            return self._encode(text)
        # A run of newlines may be a token that no merge makes.
        ids: list[int] = []
        for part in _NEWLINES.split(text.replace(" ", SPACE)):
            if part.startswith("\n") and part in self._ids:
                ids.append(self._ids[part])
            elif part:
                ids += self._encode(part)
        return ids

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids if self._complete else [id_ for id_ in ids if id_ < self._size]


def _check_runs(text: str) -> None:
    for run in _RUNS.finditer(text):
        if run.end() - run.start() > MAX_RUN:
            kind = "whitespace" if run[0][0].isspace() else "text without whitespace"
            raise RequestError(
                f"the text holds {run.end() - run.start()} characters of {kind} in one run, from "
                f"character {run.start()}; at most {MAX_RUN} can be tokenized; break it up"
            )


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    ids = vocabulary.ids
    merges: list[tuple[str, str]] = []
    dropped = 0
    for merge in vocabulary.merges:
        cut = merge.find(" ", 1)  # a merge may begin with a space
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or not right:
            raise ModelFormatError(
                f"tokenizer.ggml.merges holds {merge!r}; expected two parts with a space between "
                "them; convert the model again"
            )
        if left in ids and right in ids and left + right in ids:
            merges.append((left, right))
        else:
            dropped += 1
    if dropped:
        logger.warning("%d of %d merges make no token; ignored", dropped, len(vocabulary.merges))
    return merges
