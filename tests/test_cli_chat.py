"""`rfjax chat`: conversations, templates, reasoning."""

import pytest
from support.command_line import loading_once, runner

import rfjax
from rfjax.errors import RequestError

pytestmark = pytest.mark.quick_compile


@pytest.fixture(scope="module")
def open_model():
    return loading_once()


@pytest.fixture
def run(open_model, monkeypatch):
    return runner(open_model, monkeypatch)


@pytest.fixture
def conversations(open_model, tiny_llama_path, monkeypatch):
    """What the model was asked in a chat: one list of messages an answer."""
    from rfjax.cli.preset import StreamingEngine

    asked = []
    llm = open_model(tiny_llama_path, None, StreamingEngine())
    chat = llm.chat

    def recorded(messages, *rest, **others):
        asked.append(messages)
        return chat(messages, *rest, **others)

    monkeypatch.setattr(llm, "chat", recorded)
    return asked


def test_chat_keeps_the_conversation(run, tiny_llama_path, conversations):
    lines = "hello\n\nagain\n/clear\nmore\n/exit\nnever read\n"
    args = ("chat", tiny_llama_path, "--system", "be brief", "-n", "6", "-t", "0", "-q")
    code, out, err = run(*args, stdin=lines)
    assert (code, err) == (0, "")
    first, second, third = conversations
    system = {"role": "system", "content": "be brief"}
    assert first == [system, {"role": "user", "content": "hello"}]
    assert second[:2] == first
    answer = second[2]
    assert answer["role"] == "assistant"
    assert out.startswith(answer["content"] + "\n")
    assert second[3:] == [{"role": "user", "content": "again"}]
    assert third == [system, {"role": "user", "content": "more"}]


def test_chat_answers_one_message(run, tiny_llama_path, conversations):
    code, out, err = run("chat", tiny_llama_path, "--message", "hi", "-n", "4", "--seed", "1")
    assert code == 0
    assert out.endswith("\n")
    assert "cut off" in err
    assert conversations == [[{"role": "user", "content": "hi"}]]


def test_chat_hides_reasoning_and_leaves_it_to_the_template(
    run, tiny_llama_path, open_model, monkeypatch, tmp_path
):
    from rfjax.cli.preset import StreamingEngine
    from rfjax.engine.output import StreamOutput

    asked = []

    def reply(messages, sampling, **arguments):
        asked.append((messages, arguments))
        yield StreamOutput("", [1], [0.0], None, reasoning="Hm")
        yield StreamOutput("", [1], [0.0], None, reasoning=".")
        yield StreamOutput("Hello", [2], [0.0], "stop")

    monkeypatch.setattr(open_model(tiny_llama_path, None, StreamingEngine()), "chat", reply)
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }}\n", encoding="utf-8")
    flags = ("--reasoning", "hide", "--template", file)
    variables = ("--template-arg", "enable_thinking=false", "--template-arg", "effort=low")
    code, out, _ = run("chat", tiny_llama_path, *flags, *variables, "-q", stdin="hi\nmore\n")
    assert (code, out) == (0, "Hello\nHello\n")
    kept = {"role": "assistant", "content": "Hello", "reasoning_content": "Hm."}
    assert asked[1][0][1] == kept
    assert asked[0][1] == {
        "template": "{{ messages }}\n",
        "template_kwargs": {"enable_thinking": False, "effort": "low"},
        "reasoning": "hide",
    }


def test_chat_takes_templates_by_name(run, tiny_llama_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chatml").write_text("{{ raise_exception('a file') }}", encoding="utf-8")
    args = ("chat", tiny_llama_path, "-m", "hi", "-n", "2", "-q", "--template")
    assert run(*args, "chatml")[0] == 0
    assert run(*args, "{{ messages[0].content }}")[0] == 0
    code, _, err = run(*args, "chatlm")
    assert code == 2
    assert "no chat template is named 'chatlm'; did you mean " in err
    code, _, err = run(*args[:-1], "--template-arg", "thinking")
    assert code == 2
    assert "--template-arg" in err
    assert "thinking=false" in err


def test_chat_knows_before_a_message_is_typed_that_none_would_be_answered(
    open_model, tiny_llama_path
):
    from rfjax.cli.chat import Conversation

    llm, params = open_model(tiny_llama_path, None), rfjax.SamplingParams()
    Conversation(llm, params, "be brief", quiet=True).check()
    refusal = "{{ raise_exception('never') }}"
    for template, message in (("gema", "did you mean"), (refusal, "never")):
        with pytest.raises(RequestError, match=message):
            Conversation(llm, params, None, template=template, quiet=True).check()


def test_chat_ends_with_a_clear_error_when_the_context_is_full(run, tiny_llama_path):
    lines = "a message of some length that fills the context\n" * 9
    code, _, err = run("chat", tiny_llama_path, "-n", "20", "-t", "0", "-q", stdin=lines)
    assert code == 2
    assert "the context holds 256" in err
