"""llama-perplexity's binary files of multiple-choice tasks, read and written. Needs no JAX.

All numbers are little endian. A file is u32 number of tasks, u32 offset of each task from the
file's start, then the tasks; a task is a question and two sets of answers, of which one answer of
the first (mc1), and any number of the second (mc2), is right; only the first is evaluated. A set is
u32 number of answers, the answers, an i32 label of each, 1 for right. A text is u32 length and
UTF-8 bytes.
"""

import dataclasses
import struct
from collections.abc import Iterable

from rfjax.errors import RequestError
from rfjax.evals.tasks.task_sampling import draw_scaled

_MOST_ANSWERS = 100
"""llama-perplexity reads no more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """Possible answers.

    Attributes:
        answers: their texts.
        labels: of each, 1 for right and 0 for wrong.
    """

    answers: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()

    @property
    def right(self) -> tuple[int, ...]:
        """Indices of the right ones."""
        return tuple(index for index, label in enumerate(self.labels) if label == 1)


@dataclasses.dataclass(frozen=True, slots=True)
class MultipleChoiceItem:
    """A task in words.

    Attributes:
        question: or a context to be continued.
        single: the answers that are evaluated (mc1).
        several: answers of which any number is right (mc2): kept, not evaluated.
        number: which one of its file, from 1.
        place: how messages name it.
    """

    question: str
    single: Answers
    several: Answers = Answers()
    number: int = 1
    place: str = "task 1"


def write_multiple_choice(items: Iterable[MultipleChoiceItem]) -> bytes:
    """The file of some tasks; their numbers and places are not in it.

    Raises:
        RequestError: a task that could not be evaluated, such as one without a right answer.
    """
    bodies = []
    for number, item in enumerate(items, 1):
        _check(item, f"task {number}")
        bodies.append(_text(item.question) + _answers(item.single) + _answers(item.several))
    offsets = [4 + 4 * len(bodies)]
    for body in bodies:
        offsets.append(offsets[-1] + len(body))
    header = struct.pack(f"<{1 + len(bodies)}I", len(bodies), *offsets[:-1])
    return header + b"".join(bodies)


def read_multiple_choice(
    data: bytes, source: str = "tasks", *, n_tasks: int | None = None
) -> list[MultipleChoiceItem]:
    """Tasks of a file.

    Args:
        data: the file's bytes.
        source: its name, for messages.
        n_tasks: draw so many, the same ones as llama-perplexity; None, and any number that is not
            below the file's, takes all in the file's order.

    Raises:
        RequestError: the file is truncated or no such file, a task lacks a question, an answer or a
            label 1, has more than 100 answers or text that is not UTF-8; names the task.
    """
    if n_tasks is not None and n_tasks < 1:
        raise RequestError(f"number of multiple-choice tasks: got {n_tasks}, expected at least 1")
    reader = _Reader(data, source)
    count = reader.u32("the number of tasks")
    if not count:
        raise RequestError(f"{source}: it says that it has no tasks; expected at least one")
    offsets = reader.numbers("I", count, f"the places of {count} tasks")
    if n_tasks is None or n_tasks >= count:
        return [_item(reader, source, index) for index in range(count)]
    items = []
    for index in draw_scaled(count, n_tasks):
        reader.position = offsets[index]
        items.append(_item(reader, source, index))
    return items


class _Reader:
    """Bytes and how far they are read."""

    def __init__(self, data: bytes, place: str):
        self._data = data
        self.place = place
        self.position = 0

    def take(self, size: int, what: str) -> bytes:
        piece = self._data[self.position : self.position + size]
        if len(piece) < size:
            raise RequestError(
                f"{self.place}: {what} would be {size} bytes at offset {self.position}, and the "
                f"file has {len(self._data)}: it is truncated, or no file of multiple-choice tasks"
            )
        self.position += size
        return piece

    def numbers(self, kind: str, count: int, what: str) -> tuple[int, ...]:
        return struct.unpack(f"<{count}{kind}", self.take(4 * count, what))

    def u32(self, what: str) -> int:
        return self.numbers("I", 1, what)[0]

    def text(self, what: str) -> str:
        data = self.take(self.u32(f"the length of {what}"), what)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise RequestError(
                f"{self.place}: {what} is not UTF-8: byte 0x{data[error.start]:02x} at offset "
                f"{self.position - len(data) + error.start} of the file"
            ) from error

    def answers(self, which: str) -> Answers:
        count = self.u32(f"the number of {which} answers")
        if count > _MOST_ANSWERS:
            raise RequestError(
                f"{self.place}: it says that it has {count} {which} answers, expected no more than "
                f"{_MOST_ANSWERS}"
            )
        texts = tuple(self.text(f"{which} answer {index}") for index in range(1, count + 1))
        return Answers(texts, self.numbers("i", count, f"the labels of the {which} answers"))


def _item(reader: _Reader, source: str, index: int) -> MultipleChoiceItem:
    """The task at the reader's position, the file's `index`-th."""
    reader.place = f"{source}, task {index + 1} (offset {reader.position})"
    question = reader.text("the question")
    item = MultipleChoiceItem(
        question, reader.answers("mc1"), reader.answers("mc2"), index + 1, reader.place
    )
    _check(item, reader.place)
    return item


def _check(item: MultipleChoiceItem, place: str) -> None:
    if not item.question:
        raise RequestError(f"{place}: its question is empty, expected a text")
    if not item.single.answers:
        raise RequestError(f"{place}: it has no answer, expected at least one")
    for which, answers in (("mc1", item.single), ("mc2", item.several)):
        if len(answers.answers) != len(answers.labels) or len(answers.labels) > _MOST_ANSWERS:
            raise RequestError(
                f"{place}: got {len(answers.answers)} {which} answers and {len(answers.labels)} "
                f"labels, expected as many of each, and no more than {_MOST_ANSWERS}"
            )
    for number, answer in enumerate(item.single.answers, 1):
        if not answer:
            raise RequestError(f"{place}: answer {number} is empty, expected a text")
    if not item.single.right:
        raise RequestError(
            f"{place}: the labels of its answers are {list(item.single.labels)}, expected a 1 for "
            "the right one"
        )


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def _answers(answers: Answers) -> bytes:
    count = len(answers.answers)
    texts = b"".join(_text(text) for text in answers.answers)
    return struct.pack("<I", count) + texts + struct.pack(f"<{count}i", *answers.labels)
