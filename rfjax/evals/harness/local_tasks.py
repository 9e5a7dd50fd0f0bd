"""Task files as tasks of lm-eval, which need no network. Importing this imports lm-eval."""

import collections
import json
import os
from collections.abc import Mapping
from typing import Any

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from rfjax.errors import RequestError
from rfjax.evals.harness.task_file import (
    CHOICE,
    CONTINUATION,
    GENERATION,
    QUESTION,
    TEXT,
    TaskFile,
    read_task_file,
)

_SPLIT = "test"

# A name of a key alone is that key's value as it is; other texts are templates.
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    QUESTION.name: {
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
    },
    CHOICE.name: {
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": "",  # choices have their own space, in examples as well
    },
    CONTINUATION.name: {
        "doc_to_text": "context",
        "doc_to_target": "continuation",
        "target_delimiter": "",
    },
    TEXT.name: {"doc_to_text": "", "doc_to_target": "text"},
    GENERATION.name: {
        "doc_to_text": "prompt",
        "doc_to_target": "target",
        "filter_list": [
            {
                "name": "none",
                "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}],
            }
        ],
    },
}


class LocalTask(ConfigurableTask):
    """A task whose documents come from a file of `rfjax.evals.harness.task_file`.

    Metrics are lm-eval's default ones for what the model is asked: acc and acc_norm for choices,
    perplexity and acc for continuations, word and byte perplexity and bits per byte for texts,
    exact_match (without white space around it) for generations.
    """

    def __init__(self, file: TaskFile):
        """The task of a file."""
        self.file = file
        form = file.form
        config: dict[str, Any] = {
            "task": file.name,
            "output_type": form.output_type,
            "test_split": _SPLIT,
            "metadata": {"version": 1.0, "sha256": file.sha256, "documents": len(file.documents)},
            **_FIELDS[form.name],
        }
        if form is not TEXT:
            config["fewshot_split"] = _SPLIT  # a document is no example for itself
        if form is GENERATION:
            until = list(file.documents[0]["until"])
            config["generation_kwargs"] = {"until": until, "do_sample": False, "temperature": 0.0}
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Take the documents that are there."""
        rows = datasets.Dataset.from_list(list(self.file.documents))
        self.dataset = datasets.DatasetDict({_SPLIT: rows})

    def doc_to_target(self, doc: Mapping[str, Any], doc_to_target: Any = None) -> Any:
        """What is expected; of generations without the white space around it, as their output."""
        target: Any = super().doc_to_target(doc, doc_to_target)
        return target.strip() if GENERATION.output_type == self.OUTPUT_TYPE else target

    def check_examples(self, number: int) -> None:
        """Whether so many examples can stand before every document.

        Raises:
            RequestError: the file has fewer documents than that besides a document and its equals.
        """
        documents = [json.dumps(one) for one in self.file.documents]
        _, n_equal = collections.Counter(documents).most_common(1)[0]
        if number > (most := len(documents) - n_equal):
            raise RequestError(
                f"{self.file.path}: got --num_fewshot {number}, expected at most {most}: examples "
                f"are of the file's {len(documents)} documents, and none stands before itself"
            )

    def construct_requests(
        self, doc: dict[str, Any], ctx: str | list[str], **kwargs: Any
    ) -> list[Instance] | Instance:
        """lm-eval's requests for a document, generations with the document's own `until`."""
        requests = super().construct_requests(doc, ctx, **kwargs)
        if GENERATION.output_type == self.OUTPUT_TYPE:
            assert isinstance(requests, Instance)
            context, settings = requests.arguments
            requests.arguments = (context, {**settings, "until": list(doc["until"])})
        return requests


def load_local_task(path: str | os.PathLike[str]) -> LocalTask:
    """The task that a file describes.

    Raises:
        RequestError: as `rfjax.evals.harness.task_file.read_task_file`.
    """
    return LocalTask(read_task_file(path))
