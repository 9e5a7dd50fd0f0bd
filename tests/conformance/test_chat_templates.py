"""Chat templates of released models render a conversation."""

import datetime

import pytest

from rfjax.tokenizer.chat import ChatTemplates
from rfjax.tokenizer.chat_prompt import part_history
from rfjax.tokenizer.reasoning import THINK, find_reasoning

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


# The end of the prompt that the thinking of each begins in or before, with thinking on and off, and
# the delimiters that its replies have. `thinking` is what DeepSeek's and Granite's templates ask.
THINKING = {
    "GLM-4.6": ("", "<think></think>", "<think>"),
    "HuggingFaceTB-SmolLM3-3B": ("", "<think>\n\n</think>\n", "<think>"),
    "Qwen-Qwen3-0.6B": ("", "<think>\n\n</think>\n\n", "<think>"),
    "deepseek-ai-DeepSeek-V3.1": ("<think>", "<think></think>", "<think>"),
    "google-gemma-4-31B-it": ("", "<|channel>thought\n<channel|>", "<|channel>thought"),
    "ibm-granite-granite-3.3-2B-Instruct": ("", "", "<think>"),
    "openai-gpt-oss-120b": ("", "", None),
}


@pytest.mark.parametrize("name", THINKING)
def test_reasoning_of_thinking_models(folder, name):
    on, off, opening = THINKING[name]
    path = folder / f"{name}.jinja"
    source = path.read_text(encoding="utf-8")
    reasoning = find_reasoning(source, ())
    assert reasoning.harmony == (opening is None)
    assert opening is None or opening in [tags.opening for tags in reasoning.tags]
    for thinking, end in ((True, on), (False, off)):
        prompt = render(path, [USER], enable_thinking=thinking, thinking=thinking)
        opened = reasoning.opened(prompt)
        assert prompt.endswith(end)
        assert (opened.opening if opened else "") == (end if thinking else "")

    reply = "<|channel|>analysis<|message|>THOUGHT<|end|><|start|>assistant"
    reply += "<|channel|>final<|message|>ANSWER"
    if opening is not None:
        tags = next(tags for tags in reasoning.tags if tags.opening == opening)
        reply = f"{tags.opening}\nTHOUGHT\n{tags.closing}\nANSWER"
    assert reasoning.split(reply) == ("THOUGHT", "ANSWER")
    history = part_history([USER, {"role": "assistant", "content": reply}, NEXT], reasoning, source)
    prompt = render(path, history)
    assert "THOUGHT" not in prompt
    assert prompt.count("ANSWER") == 1


def test_templates_of_models_that_do_not_think(folder):
    for path in sorted(folder.glob("*.jinja")):
        if path.stem not in THINKING:
            reasoning = find_reasoning(path.read_text(encoding="utf-8"), ())
            assert reasoning.tags == (THINK,), path.name
            assert reasoning.opened(render(path, [USER])) is None


@pytest.mark.parametrize(
    ("stem", "family"),
    [
        ("Qwen-Qwen2.5-7B-Instruct", "chatml"),
        ("google-gemma-2-2b-it", "gemma"),
        ("microsoft-Phi-3.5-mini-instruct", "phi3"),
        ("ibm-granite-granite-3.3-2B-Instruct", "granite"),
    ],
)
def test_a_familys_template_renders_as_its_models_own(folder, stem, family):
    messages = [SYSTEM, USER, ASSISTANT, NEXT]
    own = render(folder / f"{stem}.jinja", messages).removeprefix("<BOS>")
    variables = {"add_generation_prompt": True}
    named = ChatTemplates({}, {}).render(
        messages, chat_template=family, now=NOW, variables=variables
    )
    assert own.removesuffix("<EOS>") == named
