"""Tasks as files: JSON lines, each a document, in one of a few forms. No JAX, and no lm-eval.

{"question": "Who ...?", "choices": ["...", "..."], "answer": 0}
{"context": "...", "choices": ["...", "..."], "answer": 0}
{"context": "...", "continuation": " ..."}
{"text": "..."}
{"prompt": "...", "until": ["\\n"], "target": "..."}
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rfjax.errors import RequestError

SUFFIXES = (".json", ".jsonl")
_FREE = ("id", "metadata")
_NAME = re.compile(r"[^\w.-]+")


@dataclasses.dataclass(frozen=True)
class Form:
    """A kind of document.

    Attributes:
        name: what people call it.
        output_type: lm-eval's word for what the model is asked.
        required, optional: its keys; `id` and `metadata` may stand in any document.
    """

    name: str
    output_type: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


QUESTION = Form("question with choices", "multiple_choice", ("question", "choices", "answer"))
CHOICE = Form("choice after a context", "multiple_choice", ("context", "choices", "answer"))
CONTINUATION = Form("continuation", "loglikelihood", ("context", "continuation"))
TEXT = Form("perplexity of a text", "loglikelihood_rolling", ("text",))
GENERATION = Form("generation", "generate_until", ("prompt", "target"), ("until",))
FORMS = (QUESTION, CHOICE, CONTINUATION, TEXT, GENERATION)


@dataclasses.dataclass(frozen=True)
class TaskFile:
    """A task that was read and checked.

    Attributes:
        path: the file.
        name: the file's name without its suffix; spaces and the like became `_`.
        form: of all its documents.
        documents: the keys of the form; an `until` is a list. A form's optional keys are there.
        sha256: of the file.
    """

    path: pathlib.Path
    name: str
    form: Form
    documents: tuple[dict[str, Any], ...]
    sha256: str


def is_task_file(name: str) -> bool:
    """Whether `--tasks` means a file by this name."""
    return name.endswith(SUFFIXES)


def read_task_file(path: str | os.PathLike[str]) -> TaskFile:
    """A task from JSON lines, or from a file that holds one JSON list.

    Raises:
        RequestError: it cannot be read, or a document has no known form, another one than the
            first, or a wrong value. The message names the line, and what was expected there.
    """
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"{path}: cannot be read ({error.strerror}); expected a task as JSON lines"
        ) from error
    form, documents = None, []
    for place, value in _values(path, data):
        where = f"{path}, {place}"
        found = _form_of(value, where)
        if form is not None and found is not form:
            raise RequestError(
                f"{where}: got a document of the form {found.name!r}, expected {form.name!r} as "
                "before it: give each form a file of its own"
            )
        form = found
        documents.append(_document(form, value, where))
    if form is None:
        raise RequestError(f"{path}: got no documents, expected at least one line. {_forms()}")
    name = _NAME.sub("_", path.name.rsplit(".", 1)[0]) or "task"
    return TaskFile(path, name, form, tuple(documents), hashlib.sha256(data).hexdigest())


def _values(path: pathlib.Path, data: bytes) -> Iterator[tuple[str, Any]]:
    """What stands at each place that has something."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data.lstrip().startswith(b"["):
        values = _parsed(data, str(path))
        for number, value in enumerate(values, 1):
            yield f"item {number}", value
        return
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield f"line {number}", _parsed(line, f"{path}, line {number}")


def _parsed(data: bytes, where: str) -> Any:
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{where}: got byte 0x{data[error.start]:02x}, expected UTF-8 text"
        ) from error
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column" if b"\n" in data.strip() else "column"
        raise RequestError(
            f"{where}: got invalid JSON at {at} {error.colno} ({error.msg}), expected an object "
            "such as " + json.dumps({"context": "2 + 2 =", "continuation": " 4"})
        ) from error
    except RecursionError:
        raise RequestError(f"{where}: got JSON that is nested too deeply") from None


def _form_of(value: Any, where: str) -> Form:
    if not isinstance(value, dict):
        raise RequestError(f"{where}: got {_shown(value)}, expected an object. {_forms()}")
    keys = set(value)
    fitting = [form for form in FORMS if keys >= set(form.required)]
    if len(fitting) > 1:
        names = " or ".join(repr(form.name) for form in fitting)
        raise RequestError(f"{where}: got the keys {_listed(keys)}, which may be {names}")
    if fitting:
        (form,) = fitting
        unknown = keys - {*form.required, *form.optional, *_FREE}
        if unknown:
            known = _listed({*form.required, *form.optional, *_FREE})
            raise RequestError(
                f"{where}: got the unknown keys {_listed(unknown)}, expected of {known}; put what "
                "is only for people into metadata"
            )
        return form
    raise RequestError(f"{where}: got the keys {_listed(keys) or 'none'}. {_forms()}")


def _forms() -> str:
    return "Expected one of: " + "; ".join(
        f"{', '.join(form.required)}"
        + (f" (and perhaps {', '.join(form.optional)})" if form.optional else "")
        for form in FORMS
    )


def _document(form: Form, value: Mapping[str, Any], where: str) -> dict[str, Any]:
    document = {}
    for key in (*form.required, *form.optional):
        if key in value:
            expected = _CHECKS[key](value[key], value)
            if expected:
                raise RequestError(f"{where}: {key}: got {_shown(value[key])}, expected {expected}")
            document[key] = value[key]
    if "until" in form.optional:
        until = document.get("until", ["\n\n"])  # lm-eval's own default
        document["until"] = [until] if isinstance(until, str) else list(until)
    return document


def _text(value: Any, document: Mapping[str, Any]) -> str:
    if not isinstance(value, str) or not _is_unicode(value):
        return "a text"
    return ""


def _some_text(value: Any, document: Mapping[str, Any]) -> str:
    return _text(value, document) or ("" if value else "a text that is not empty")


def _texts(value: Any, document: Mapping[str, Any]) -> str:
    whole = isinstance(value, list) and all(not _some_text(text, document) for text in value)
    return "" if whole and len(value) > 1 else "a list of at least two texts that are not empty"


def _stops(value: Any, document: Mapping[str, Any]) -> str:
    texts = [value] if isinstance(value, str) else value
    whole = isinstance(texts, list) and all(not _some_text(text, document) for text in texts)
    return "" if whole else "a text or a list of texts, none of them empty"


def _index(value: Any, document: Mapping[str, Any]) -> str:
    choices = document["choices"]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(choices):
        return f"the index of a choice, from 0 to {len(choices) - 1}"
    return ""


# Each says what was expected, or nothing. `choices` come before `answer` in every form.
_CHECKS: Mapping[str, Callable[[Any, Mapping[str, Any]], str]] = {
    "question": _some_text,
    "context": _text,
    "continuation": _some_text,
    "choices": _texts,
    "answer": _index,
    "text": _some_text,
    "prompt": _some_text,
    "target": _some_text,
    "until": _stops,
}


def _is_unicode(text: str) -> bool:
    """Without lone surrogates, which JSON can spell and no tokenizer can read."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _listed(keys: set[str]) -> str:
    return ", ".join(sorted(keys))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
