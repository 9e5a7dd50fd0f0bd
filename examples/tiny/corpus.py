"""A text in three parts."""

import dataclasses

from rfjax.errors import RequestError

_HELD_OUT = 0.05
_VALIDATION = 0.04


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Parts of a text, in its order.

    Attributes:
        train: what the vocabulary and the weights are learned from.
        validation: decides when to stop and which recipe is best.
        held_out: touched once, to measure the finished model.
    """

    train: str
    validation: str
    held_out: str


def split(text: str) -> Corpus:
    """The last 5 % held out, the 4 % before it for validation; cut between paragraphs."""
    first = _paragraph(text, round(len(text) * (1 - _HELD_OUT - _VALIDATION)))
    second = _paragraph(text, round(len(text) * (1 - _HELD_OUT)))
    if not 0 < first < second < len(text):
        raise RequestError(
            f"the text has {len(text)} characters and too few paragraphs to be split in three; "
            "expected blank lines between paragraphs throughout"
        )
    return Corpus(train=text[:first], validation=text[first:second], held_out=text[second:])


def _paragraph(text: str, start: int) -> int:
    """Where the first paragraph behind `start` begins; the text's length if there is none."""
    end = text.find("\n\n", start)
    return len(text) if end < 0 else end + 2
