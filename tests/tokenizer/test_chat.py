"""Chat templates: what they see, what they may refuse, and what bad ones get."""

import datetime

import pytest

from rfjax.errors import ModelFormatError, RequestError
from rfjax.tokenizer.chat import read_templates
from rfjax.tokenizer.tokenizer import Tokenizer
from rfjax.tokenizer.vocabulary import read_vocabulary

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}"
    "{% endfor %}"
)


@pytest.fixture
def chat(bpe_metadata):
    """Renders messages with a template given as source, or with the named ones of a file."""

    def render(source, messages=(USER,), templates=None, **kwargs):
        if templates is None:
            templates = {"tokenizer.chat_template": source}
        metadata = bpe_metadata | templates
        tokenizer = Tokenizer(read_vocabulary(metadata), read_templates(metadata))
        return tokenizer.apply_chat_template(list(messages), **kwargs)

    return render


class TestWhatTemplatesSee:
    def test_a_conversation(self, chat):
        expected = (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n"
        )
        messages = [SYSTEM, USER, ASSISTANT]
        assert chat(CHATML, messages, add_generation_prompt=False) == expected
        assert chat(CHATML, messages) == expected + "<|im_start|>assistant\n"

    def test_the_result_encodes_with_its_special_tokens(self, bpe_metadata):
        metadata = bpe_metadata | {"tokenizer.chat_template": CHATML}
        tokenizer = Tokenizer(read_vocabulary(metadata), read_templates(metadata))
        assert tokenizer.chat_template == CHATML
        text = tokenizer.apply_chat_template([USER])
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=True)
        assert ids.count(tokenizer.eos_id) == 1
        assert tokenizer.decode(ids, skip_special_tokens=False) == text

    def test_special_tokens_tools_documents_and_variables(self, chat):
        source = (
            "{{ bos_token }}|{{ eos_token }}|{{ tools | tojson }}|{{ documents[0].title }}"
            "|{{ enable_thinking }}|{{ pad_token is defined }}"
        )
        result = chat(
            source, tools=[{"name": "é<"}], documents=[{"title": "T"}], enable_thinking=False
        )
        assert result == '<|im_start|>|<|im_end|>|[{"name": "é<"}]|T|False|False'
        assert chat("{{ tools is none }}{{ documents is none }}") == "TrueTrue"

    def test_json_has_the_usual_options(self, chat):
        source = "{{ {'b': 1, 'a': 'é'} | tojson(indent=2, sort_keys=true) }}"
        assert chat(source) == '{\n  "a": "é",\n  "b": 1\n}'

    def test_the_time_is_what_it_is_told(self, chat):
        source = "{{ strftime_now('%d %b %Y') }}"
        assert chat(source, now=datetime.datetime(2024, 7, 26)) == "26 Jul 2024"
        assert chat("{{ strftime_now('%Y') }}") >= "2024"

    def test_blocks_are_trimmed_and_loops_have_controls(self, chat):
        stop = "{% if i == 2 %}{% break %}{% endif %}"
        source = f"{{% for i in range(9) %}}\n  {stop}\n{{{{ i }}}}\n{{% endfor %}}"
        assert chat(source) == "0\n1\n"

    def test_training_marks_are_transparent(self, chat):
        assert chat("{% generation %}a{% endgeneration %}b") == "ab"


NAMED = {
    "tokenizer.chat_template": "main",
    "tokenizer.chat_template.rag": "rag",
    "tokenizer.chat_templates": ("rag",),
}


class TestNamedTemplates:
    def test_by_name_and_by_source(self, chat):
        assert chat(None, templates=NAMED) == "main"
        assert chat(None, templates=NAMED, chat_template="rag") == "rag"
        assert chat(None, templates=NAMED, chat_template="{{ 1 + 1 }}") == "2"

    def test_tools_take_the_files_template_for_them(self, chat):
        templates = NAMED | {"tokenizer.chat_template.tool_use": "tools"}
        assert chat(None, templates=templates, tools=[{"name": "f"}]) == "tools"
        assert chat(None, templates=templates) == "main"
        assert chat(None, templates=templates, tools=[{}], chat_template="default") == "main"
        assert chat(None, templates=NAMED, tools=[{"name": "f"}]) == "main"

    def test_names_of_families_come_after_the_files_own(self, chat):
        assert chat(None, templates=NAMED, chat_template="phi3") == (
            "<|user|>\nHi<|end|>\n<|assistant|>\n"
        )
        templates = {"tokenizer.chat_template.phi3": "own"}
        assert chat(None, templates=templates, chat_template="phi3") == "own"

    def test_an_unknown_name(self, chat):
        message = r"'rga'; did you mean rag.*has: default, rag; built"
        with pytest.raises(RequestError, match=message):
            chat(None, templates=NAMED, chat_template="rga")
        with pytest.raises(RequestError, match="did you mean llama3"):
            chat(None, templates=NAMED, chat_template="lama3")

    def test_no_template(self, chat, spm_metadata):
        message = r"has no chat template; name .* template= \(--template .*suggest chatml"
        with pytest.raises(RequestError, match=message):
            chat(None, templates={})
        with pytest.raises(RequestError, match=r"by default \(it has: rag\)"):
            chat(None, templates={"tokenizer.chat_template.rag": "rag"})
        tokenizer = Tokenizer(read_vocabulary(spm_metadata), {})
        with pytest.raises(RequestError, match="such as chatml, llama3 or gemma"):
            tokenizer.apply_chat_template([USER])

    def test_a_template_that_is_no_string(self):
        with pytest.raises(ModelFormatError, match=r"tokenizer\.chat_template is int"):
            read_templates({"tokenizer.chat_template": 3})


class TestRefusals:
    def test_a_system_message_is_folded_into_the_first_user_message(self, chat):
        result = chat(NO_SYSTEM, [SYSTEM, USER, ASSISTANT])
        assert result == "[user]Be brief.\n\nHi[assistant]Hello"

    def test_content_in_parts_is_folded_in_parts(self, chat):
        source = NO_SYSTEM.replace(
            "{{ m.content }}", "{{ m.content | map(attribute='text') | list }}"
        )
        parts = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
        assert chat(source, [SYSTEM, parts]) == "[user]['Be brief.', 'Hi']"

    def test_other_refusals_come_in_the_templates_words(self, chat):
        with pytest.raises(RequestError, match="refuses the conversation: roles must alternate"):
            chat(NO_SYSTEM, [USER, USER])
        with pytest.raises(RequestError, match="roles must alternate"):
            chat(NO_SYSTEM, [SYSTEM, USER, USER])
        with pytest.raises(RequestError, match="never"):
            chat("{{ raise_exception('never') }}", [SYSTEM, USER])
        with pytest.raises(RequestError, match="no system role"):
            chat(NO_SYSTEM, [SYSTEM])

    def test_a_refusal_that_is_not_about_the_system_role(self, chat):
        source = "{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}ok"
        with pytest.raises(RequestError, match="too long"):
            chat(source, [SYSTEM, USER, ASSISTANT])


class TestPublicErrors:
    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            ([], "messages is empty"),
            ("Hi", "messages is a list of .* got str"),
            ({"role": "user"}, "messages is a list of .* got dict"),
            (["Hi"], "message 0 is 'Hi'; expected a mapping with a 'role'"),
            ([USER, {"content": "Hi"}], "message 1 is"),
        ],
    )
    def test_messages_of_the_wrong_form(self, bpe_metadata, messages, message):
        tokenizer = Tokenizer(read_vocabulary(bpe_metadata), {"default": CHATML})
        with pytest.raises(RequestError, match=message):
            tokenizer.apply_chat_template(messages)

    @pytest.mark.parametrize(
        "source", ["{% if %}", "{{ a", "{% for x in y %}", "{{ x | nofilter }}"]
    )
    def test_a_template_that_is_not_jinja(self, chat, source):
        with pytest.raises(ModelFormatError, match="not valid Jinja: line 1"):
            chat(source)

    @pytest.mark.parametrize(
        "source",
        [
            "{{ messages[0].content + 1 }}",
            "{{ none.x.y }}",
            "{{ 1 / 0 }}",
            "{% for x in none %}{% endfor %}",
            "{{ undefined_name.attribute }}",
            "{{ messages | tojson | int + 'a' }}",
            "{{ strftime_now(3) }}",
        ],
    )
    def test_a_template_that_fails(self, chat, source):
        with pytest.raises(RequestError, match="the chat template failed"):
            chat(source)
