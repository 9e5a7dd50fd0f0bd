"""Chat templates of released models render a conversation."""

import datetime

import pytest

from rfjax.tokenizer.chat import ChatTemplates

SYSTEM = {"role": "system", "content": "SYSTEM-TEXT"}
USER = {"role": "user", "content": "USER-TEXT"}
ASSISTANT = {"role": "assistant", "content": "ASSISTANT-TEXT"}
NEXT = {"role": "user", "content": "NEXT-TEXT"}
NOW = datetime.datetime(2024, 7, 26, 12, 0)


def render(path, messages, **variables):
    templates = ChatTemplates(
        {"default": path.read_text(encoding="utf-8")}, {"bos_token": "<BOS>", "eos_token": "<EOS>"}
    )
    variables = {"tools": None, "documents": None, "add_generation_prompt": True} | variables
    return templates.render(messages, chat_template=None, now=NOW, variables=variables)


@pytest.fixture
def folder(conformance):
    return conformance / "chat-templates"


def test_every_template_renders(folder):
    paths = sorted(folder.glob("*.jinja"))
    assert paths
    for path in paths:
        text = render(path, [SYSTEM, USER, ASSISTANT])
        # Mistral puts the system text into the last user message, and here there is none to come.
        expected = [USER, ASSISTANT] if "Mistral-Nemo" in path.name else [SYSTEM, USER, ASSISTANT]
        positions = [text.find(message["content"]) for message in expected]
        assert -1 not in positions and positions == sorted(positions), path.name


def test_every_template_renders_a_conversation_to_go_on_with(folder):
    for path in sorted(folder.glob("*.jinja")):
        text = render(path, [SYSTEM, USER, ASSISTANT, NEXT])
        for message in (SYSTEM, USER, ASSISTANT, NEXT):
            assert text.count(message["content"]) == 1, path.name


def test_qwen(folder):
    assert render(folder / "Qwen-Qwen2.5-7B-Instruct.jinja", [SYSTEM, USER, ASSISTANT]) == (
        "<|im_start|>system\nSYSTEM-TEXT<|im_end|>\n<|im_start|>user\nUSER-TEXT<|im_end|>\n"
        "<|im_start|>assistant\nASSISTANT-TEXT<|im_end|>\n<|im_start|>assistant\n"
    )


def test_gemma_2_gets_the_system_message_in_the_first_user_turn(folder):
    assert render(folder / "google-gemma-2-2b-it.jinja", [SYSTEM, USER, ASSISTANT]) == (
        "<BOS><start_of_turn>user\nSYSTEM-TEXT\n\nUSER-TEXT<end_of_turn>\n"
        "<start_of_turn>model\nASSISTANT-TEXT<end_of_turn>\n<start_of_turn>model\n"
    )


def test_llama_3_1_knows_the_date_and_the_tools(folder):
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    path = folder / "meta-llama-Llama-3.1-8B-Instruct.jinja"
    text = render(path, [SYSTEM, USER], tools=[tool])
    assert "Today Date: 26 Jul 2024" in text
    assert '"name": "weather"' in text
