"""A conversation as tokens: what begins it, what ends the answer, and the reasoning of before."""

import numpy as np
import pytest

from rfjax.errors import RequestError
from rfjax.tokenizer.chat import read_templates
from rfjax.tokenizer.chat_prompt import part_history
from rfjax.tokenizer.reasoning import THINK, Reasoning
from rfjax.tokenizer.tokenizer import Tokenizer
from rfjax.tokenizer.vocabulary import read_vocabulary

USER = {"role": "user", "content": "Hi"}
THOUGHTFUL = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nHello"}
HARMONY = Reasoning((), harmony=True)
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def make(metadata, template=TEMPLATE, **keys):
    metadata = metadata | {"tokenizer.chat_template": template}
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return Tokenizer(read_vocabulary(metadata), read_templates(metadata))


def with_tokens(metadata, *texts, kind=3):
    tokens = (*metadata["tokenizer.ggml.tokens"], *texts)
    kinds = [*metadata["tokenizer.ggml.token_type"], *[kind] * len(texts)]
    return metadata | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
    }


class TestTokens:
    def test_the_beginning_is_added_once_where_the_file_asks_for_it(self, bpe_metadata):
        for template in (TEMPLATE, "{{ bos_token }}" + TEMPLATE):
            tokenizer = make(bpe_metadata, template, add_bos_token=True)
            prompt = tokenizer.chat_prompt([USER])
            expected = tokenizer.encode("[user]Hi", add_special_tokens=False)
            assert prompt.token_ids == [tokenizer.bos_id, *expected]
        prompt = make(bpe_metadata).chat_prompt([USER])
        assert prompt.token_ids == expected
        assert prompt.text == "[user]Hi"

    def test_arguments_reach_the_template(self, bpe_metadata):
        tokenizer = make(bpe_metadata, "{{ enable_thinking }}{{ tools | length }}")
        kwargs = {"enable_thinking": False, "tools": [{"name": "f"}]}
        assert tokenizer.chat_prompt([USER], template_kwargs=kwargs).text == "False1"

    def test_bad_messages(self, bpe_metadata):
        for bad in ("Hi", {"role": "user"}, [1], []):
            with pytest.raises(RequestError, match="message"):
                make(bpe_metadata).chat_prompt(bad)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"messages": []}, "'messages' cannot be passed"),
            ({1: 2}, "1 cannot be passed"),
            ({"tools": "f"}, "tools is 'f'; expected a list"),
            ({"now": "today"}, "now is 'today'; expected a datetime"),
            ("enable_thinking", "expected a mapping"),
        ],
    )
    def test_bad_arguments(self, bpe_metadata, kwargs, message):
        with pytest.raises(RequestError, match=message):
            make(bpe_metadata).chat_prompt([USER], template_kwargs=kwargs)


class TestStops:
    def test_the_files_template_has_the_files_ends(self, bpe_metadata):
        prompt = make(bpe_metadata).chat_prompt([USER])
        assert (prompt.stop, prompt.stop_token_ids) == ((), ())

    def test_a_familys_end_is_a_token_that_ends_anyway(self, bpe_metadata):
        prompt = make(bpe_metadata).chat_prompt([USER], template="chatml")
        assert (prompt.stop, prompt.stop_token_ids) == ((), ())

    def test_a_familys_end_is_a_token_that_ends_nothing_else(self, bpe_metadata):
        tokenizer = make(with_tokens(bpe_metadata, "<|end_of_turn|>"))
        prompt = tokenizer.chat_prompt([USER], template="openchat")
        assert prompt.stop == ()
        assert prompt.stop_token_ids == (tokenizer.piece_to_id("<|end_of_turn|>"),)

    def test_a_familys_end_is_no_token(self, bpe_metadata):
        prompt = make(bpe_metadata).chat_prompt([USER], template="openchat")
        assert (prompt.stop, prompt.stop_token_ids) == (("<|end_of_turn|>",), ())
        assert make(bpe_metadata).chat_prompt([USER], template=TEMPLATE).stop == ()


class TestReasoning:
    def test_a_prompt_may_end_inside(self, bpe_metadata):
        tokenizer = make(bpe_metadata, TEMPLATE + "[assistant]{{ '<think>\n' }}")
        prompt = tokenizer.chat_prompt([USER])
        assert prompt.opened is THINK
        assert prompt.opened_text == "<think>\n"
        prompt = make(bpe_metadata).chat_prompt([USER])
        assert prompt.opened is None
        assert prompt.opened_text == ""

    def test_tokens_of_the_vocabulary_tell(self, bpe_metadata):
        tokenizer = make(with_tokens(bpe_metadata, "[THINK]", "[/THINK]"))
        assert "[THINK]" in tokenizer.chat_prompt([USER]).reasoning.marks

    def test_old_reasoning_is_the_templates_affair(self, bpe_metadata):
        messages = [USER, THOUGHTFUL, USER]
        assert make(bpe_metadata).chat_prompt(messages).text == "[user]Hi[assistant]Hello[user]Hi"
        template = TEMPLATE.replace("{{ m.content }}", "({{ m.reasoning_content }}){{ m.content }}")
        text = make(bpe_metadata, template).chat_prompt(messages).text
        assert text == "[user]()Hi[assistant](Hm.)Hello[user]()Hi"


class TestHistory:
    reasoning = Reasoning((THINK,))

    @pytest.mark.parametrize(
        ("template", "key"),
        [
            ("{{ m.reasoning_content }}", "reasoning_content"),
            ("{{ m['thinking'] }}", "thinking"),
            ('{% if "reasoning" in m %}', "reasoning"),
            ("{{ m.thinking }}{{ m.reasoning_content }}", "reasoning_content"),
        ],
    )
    def test_where_the_template_looks(self, template, key):
        expected = {"role": "assistant", "content": "Hello", key: "Hm."}
        assert part_history([THOUGHTFUL], self.reasoning, template) == [expected]
        given = {"role": "assistant", "content": "Hello", "reasoning_content": "Hm."}
        assert part_history([given], self.reasoning, template)[0][key] == "Hm."

    def test_a_template_that_looks_nowhere(self):
        template = "{{ '<think>' }} thinking, reasoning"
        plain = {"role": "assistant", "content": "Hello"}
        assert part_history([THOUGHTFUL], self.reasoning, template) == [plain]

    def test_harmony(self):
        content = (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
            "<|channel|>final<|message|>Hello"
        )
        message = {"role": "assistant", "content": content}
        expected = {"role": "assistant", "content": "Hello", "thinking": "Hm."}
        assert part_history([message], HARMONY, "{{ m.thinking }}") == [expected]

    @pytest.mark.parametrize(
        "message",
        [
            {"role": "user", "content": "<think>a</think>b"},
            {"role": "assistant", "content": "a <think>b</think>"},
            {"role": "assistant", "content": [{"type": "text", "text": "<think>a</think>"}]},
            {"role": "assistant", "content": "<think>a</think>b", "tool_calls": [{}]},
            {"role": "assistant"},
        ],
    )
    def test_what_stays_as_it_is(self, message):
        assert part_history([message], self.reasoning, "{{ m.reasoning_content }}") == [message]
