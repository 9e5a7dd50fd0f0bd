"""Built-in chat templates render what llama.cpp renders for the same names."""

import json
import pathlib

import pytest

from rfjax.tokenizer.chat import ChatTemplates
from rfjax.tokenizer.families import FAMILIES

GOLDENS = json.loads(
    (pathlib.Path(__file__).parent / "goldens" / "families.json").read_text(encoding="utf-8")
)
ENDED_BY_THE_NEXT_TURN = {"chatglm3", "chatglm4", "glmedge"}
WITHOUT_END = {
    *("bailing", "bailing-think", "deepseek-ocr", "falcon3", "hunyuan-vl", "minicpm"),
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


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - WITHOUT_END - ENDED_BY_THE_NEXT_TURN))
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


@pytest.mark.parametrize("name", sorted(ENDED_BY_THE_NEXT_TURN))
def test_an_answer_ends_with_the_next_turn(name):
    messages = [{"role": role, "content": role.upper()} for role in ("user", "assistant", "user")]
    text = render(name, {"messages": messages, "add_generation_prompt": False})
    assert text.partition("ASSISTANT")[2].startswith(FAMILIES[name].end)


def test_the_families_without_an_end():
    assert {name for name, family in FAMILIES.items() if not family.end} == WITHOUT_END
