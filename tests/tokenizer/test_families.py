"""Built-in chat templates render what llama.cpp renders for the same names."""

import json
import pathlib

import pytest

from rfjax.tokenizer.chat import ChatTemplates
from rfjax.tokenizer.families import FAMILIES

GOLDENS = json.loads(
    (pathlib.Path(__file__).parent / "goldens" / "families.json").read_text(encoding="utf-8")
)
UNMARKED = {  # where the prompt for the answer has the text that ends it, or nothing has
    *("bailing", "bailing-think", "chatglm3", "chatglm4", "deepseek-ocr", "falcon3", "glmedge"),
    *("hunyuan-vl", "minicpm"),
}


def render(name, conversation):
    return ChatTemplates({}, {}).render(
        conversation["messages"],
        chat_template=name,
        now=None,
        variables={"add_generation_prompt": conversation["add_generation_prompt"]},
    )


def test_all_names_are_there():
    assert sorted(FAMILIES) == list(FAMILIES) == sorted(GOLDENS["texts"])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_renders_as_in_llama_cpp(name):
    for conversation, expected in zip(
        GOLDENS["conversations"], GOLDENS["texts"][name], strict=True
    ):
        assert render(name, conversation) == expected


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - UNMARKED))
def test_an_answer_ends_with_the_familys_end(name):
    conversation = {
        "messages": [
            {"role": "user", "content": "QUESTION"},
            {"role": "assistant", "content": "ANSWER"},
        ],
        "add_generation_prompt": False,
    }
    _, _, rest = render(name, conversation).partition("ANSWER")
    end = FAMILIES[name].end
    assert end
    assert rest.startswith((end, f"\n{end}"))
