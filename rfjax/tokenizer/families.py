"""Chat templates by short names, for model files that carry none.

The names, and what is rendered under each, are those of llama.cpp's `llama_chat_apply_template`;
the templates are written here in Jinja like those in model files. As there, none writes the
token that begins a sequence, unless a family's turns begin with it: whoever encodes the text adds
it where the file asks for it.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family of models writes a conversation.

    Attributes:
      source: Jinja source.
      end: Text that ends an assistant's turn; empty where the template shows none, so that only
        the model's own end tokens do.
    """

    source: str
    end: str


def _turns(turn: str, answer: str = "", *, before: str = "") -> str:
    """A template: what stands before all turns, each turn, and where the answer goes."""
    last = "{% if add_generation_prompt %}" + answer + "{% endif %}" if answer else ""
    return before + "{% for message in messages %}" + turn + "{% endfor %}" + last


def _by_role(*cases: tuple[str, str], otherwise: str = "") -> str:
    """A turn by its role; `otherwise` is for all roles that are not named."""
    words = ["if", *["elif"] * (len(cases) - 1)]
    tests = [
        "{% " + word + " message.role == '" + role + "' %}" + text
        for word, (role, text) in zip(words, cases, strict=True)
    ]
    last = "{% else %}" + otherwise if otherwise else ""
    return "".join(tests) + last + "{% endif %}"


_ROLE = "{{ message.role }}"
_TEXT = "{{ message.content }}"
_TRIMMED = "{{ message.content | trim }}"
_HAS_SYSTEM = "messages[0].role == 'system'"


def _mistral(leading: str, trailing: str, answer: str = _TEXT) -> str:
    """Mistral's first formats, in which a system message stands inside the user's turn."""
    opened = "{{ '" + leading + "[INST]" + trailing + "' }}"
    return _turns(
        "{% if not state.inside %}" + opened + "{% set state.inside = true %}{% endif %}"
        "{% if message.role == 'system' %}{{ message.content + '\n\n' }}"
        "{% elif message.role == 'user' %}{{ message.content + '" + leading + "[/INST]' }}"
        "{% else %}{{ '" + trailing + "' }}" + answer + "</s>{% set state.inside = false %}"
        "{% endif %}",
        before="{% set state = namespace(inside=false) %}",
    )


def _llama2(*, system: str, text: str = _TEXT, again: str = "[INST] ") -> str:
    """Llama 2 and its variants: what wraps a system message, and what opens a later turn."""
    return _turns(
        "{% if not state.inside %}{{ '"
        + again
        + "' }}{% set state.inside = true %}{% endif %}"
        + _by_role(
            ("system", system),
            ("user", text + "{{ ' [/INST]' }}"),
            otherwise=text + "</s>{% set state.inside = false %}",
        ),
        before="{% set state = namespace(inside=true) %}{{ '[INST] ' }}",
    )


def _exaone(tool: bool) -> str:
    ended = _TRIMMED + "[|endofturn|]\n"
    cases = [
        ("system", "[|system|]" + ended),
        ("user", "[|user|]" + _TRIMMED + "\n"),
        ("assistant", "[|assistant|]" + ended),
    ]
    if tool:
        cases.append(("tool", "[|tool|]" + ended))
    return _turns(_by_role(*cases), "[|assistant|]")


def _granite(tool_call: str) -> str:
    return _turns(
        _by_role(
            ("assistant_tool_call", tool_call),
            otherwise="<|start_of_role|>" + _ROLE + "<|end_of_role|>",
        )
        + _TEXT
        + "<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>",
    )


def _bailing(ended: str, answer: str = "", before: str = "") -> str:
    role = "{{ 'HUMAN' if message.role == 'user' else message.role | upper }}"
    turn = "<role>" + role + "</role>" + _TEXT + ended
    return _turns(turn, "<role>ASSISTANT</role>" + answer, before=before)


def _vicuna(system: str) -> str:
    return _turns(
        _by_role(
            ("system", system),
            ("user", "USER: " + _TEXT + "\n"),
            ("assistant", "ASSISTANT: " + _TEXT + "</s>\n"),
        ),
        "ASSISTANT:",
    )


# A system message that goes into the next turn of someone else.
_KEPT_SYSTEM = "{% set state = namespace(system='') %}"
_GEMMA = _turns(
    "{% if message.role == 'system' %}"
    "{% set state.system = state.system + message.content | trim %}{% else %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{% if state.system and message.role not in ('assistant', 'model') %}"
    "{{ state.system + '\n\n' }}{% set state.system = '' %}{% endif %}" + _TRIMMED + "<end_of_turn>"
    "{{ '\n' }}{% endif %}",
    "<start_of_turn>model\n",
    before=_KEPT_SYSTEM,
)
_ORION = _turns(
    "{% if message.role == 'system' %}{% set state.system = state.system + message.content %}"
    "{% elif message.role == 'user' %}{{ 'Human: ' }}"
    "{% if state.system %}{{ state.system + '\n\n' }}{% set state.system = '' %}{% endif %}"
    "{{ message.content + '\n\nAssistant: </s>' }}"
    "{% else %}" + _TEXT + "</s>{% endif %}",
    before=_KEPT_SYSTEM,
)
_PANGU_ROLES = (
    "{% set names = {'system': '系统', 'user': '用户', 'assistant': '助手', 'tool': '工具', "
    "'function': '方法'} %}"
)


def _plain(role: str, text: str, end: str, answer: str, before: str = "") -> Family:
    """A family whose turns all look the same; `role` and `end` wrap the text."""
    return Family(_turns(role + text + end, answer, before=before), end.strip())


def _named() -> dict[str, Family]:
    pangu_turn = (
        "{% if message.role in names %}[unused9]{{ names[message.role] }}：" + _TEXT + "[unused10]"
        "{% endif %}"
    )
    return {
        "chatml": _plain(
            "<|im_start|>" + _ROLE + "\n", _TEXT, "<|im_end|>\n", "<|im_start|>assistant\n"
        ),
        "llama2": Family(_llama2(system=_TEXT + "\n"), "</s>"),
        "llama2-sys": Family(_llama2(system="<<SYS>>\n" + _TEXT + "\n<</SYS>>\n\n"), "</s>"),
        "llama2-sys-bos": Family(
            _llama2(system="<<SYS>>\n" + _TEXT + "\n<</SYS>>\n\n", again="<s>[INST] "), "</s>"
        ),
        "llama2-sys-strip": Family(
            _llama2(system="<<SYS>>\n" + _TRIMMED + "\n<</SYS>>\n\n", text=_TRIMMED), "</s>"
        ),
        "llama3": _plain(
            "<|start_header_id|>" + _ROLE + "<|end_header_id|>\n\n",
            _TRIMMED,
            "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        "llama4": _plain(
            "<|header_start|>" + _ROLE + "<|header_end|>\n\n",
            _TRIMMED,
            "<|eot|>",
            "<|header_start|>assistant<|header_end|>\n\n",
        ),
        "mistral-v1": Family(_mistral(" ", " "), "</s>"),
        "mistral-v3": Family(_mistral("", " ", _TRIMMED), "</s>"),
        "mistral-v3-tekken": Family(_mistral("", ""), "</s>"),
        **{
            name: Family(
                _turns(
                    _by_role(
                        ("system", "[SYSTEM_PROMPT]" + space + _TEXT + "[/SYSTEM_PROMPT]"),
                        ("user", "[INST]" + space + _TEXT + "[/INST]"),
                        otherwise=space + _TEXT + "</s>",
                    )
                ),
                "</s>",
            )
            for name, space in (("mistral-v7", "{{ ' ' }}"), ("mistral-v7-tekken", ""))
        },
        "phi3": _plain("<|" + _ROLE + "|>\n", _TEXT, "<|end|>\n", "<|assistant|>\n"),
        "phi4": _plain(
            "<|im_start|>" + _ROLE + "<|im_sep|>",
            _TEXT,
            "<|im_end|>",
            "<|im_start|>assistant<|im_sep|>",
        ),
        "falcon3": Family(_turns("<|" + _ROLE + "|>\n" + _TEXT + "\n", "<|assistant|>\n"), ""),
        "zephyr": _plain("<|" + _ROLE + "|>\n", _TEXT, "<|endoftext|>\n", "<|assistant|>\n"),
        "monarch": Family(
            _turns(
                "{{ '' if loop.first else '<s>' }}" + _ROLE + "\n" + _TEXT + "</s>\n",
                "<s>assistant\n",
            ),
            "</s>",
        ),
        "gemma": Family(_GEMMA, "<end_of_turn>"),
        "orion": Family(_ORION, "</s>"),
        "openchat": Family(
            _turns(
                _by_role(
                    ("system", ""),
                    otherwise="GPT4 Correct {{ message.role[:1] | upper + message.role[1:] }}: ",
                )
                + _TEXT
                + "<|end_of_turn|>",
                "GPT4 Correct Assistant:",
            ),
            "<|end_of_turn|>",
        ),
        "vicuna": Family(_vicuna(_TEXT + "\n\n"), "</s>"),
        "vicuna-orca": Family(_vicuna("SYSTEM: " + _TEXT + "\n"), "</s>"),
        "deepseek": Family(
            _turns(
                _by_role(
                    ("system", _TEXT),
                    ("user", "### Instruction:\n" + _TEXT + "\n"),
                    ("assistant", "### Response:\n" + _TEXT + "\n<|EOT|>\n"),
                ),
                "### Response:\n",
            ),
            "<|EOT|>",
        ),
        "deepseek2": Family(
            _turns(
                _by_role(
                    ("system", _TEXT + "\n\n"),
                    ("user", "User: " + _TEXT + "\n\n"),
                    ("assistant", "Assistant: " + _TEXT + "<｜end▁of▁sentence｜>"),
                ),
                "Assistant:",
            ),
            "<｜end▁of▁sentence｜>",
        ),
        "deepseek3": Family(
            _turns(
                _by_role(
                    ("system", _TEXT + "\n\n"),
                    ("user", "<｜User｜>" + _TEXT),
                    ("assistant", "<｜Assistant｜>" + _TEXT + "<｜end▁of▁sentence｜>"),
                ),
                "<｜Assistant｜>",
            ),
            "<｜end▁of▁sentence｜>",
        ),
        "deepseek-ocr": Family(_turns(_TEXT), ""),
        "command-r": Family(
            _turns(
                _by_role(
                    *(
                        (
                            role,
                            f"<|START_OF_TURN_TOKEN|><|{name}_TOKEN|>"
                            + _TRIMMED
                            + "<|END_OF_TURN_TOKEN|>",
                        )
                        for role, name in (
                            ("system", "SYSTEM"),
                            ("user", "USER"),
                            ("assistant", "CHATBOT"),
                        )
                    )
                ),
                "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
            ),
            "<|END_OF_TURN_TOKEN|>",
        ),
        "chatglm3": Family(
            _turns("<|" + _ROLE + "|>\n " + _TEXT, "<|assistant|>", before="[gMASK]sop"),
            "<|user|>",
        ),
        "chatglm4": Family(
            _turns("<|" + _ROLE + "|>\n" + _TEXT, "<|assistant|>\n", before="[gMASK]<sop>"),
            "<|user|>",
        ),
        "glmedge": Family(_turns("<|" + _ROLE + "|>\n" + _TEXT, "<|assistant|>"), "<|user|>"),
        "minicpm": Family(
            _turns(_by_role(("user", "<用户>" + _TRIMMED + "<AI>"), otherwise=_TRIMMED)), ""
        ),
        "exaone3": Family(_exaone(tool=False), "[|endofturn|]"),
        "exaone4": Family(_exaone(tool=True), "[|endofturn|]"),
        "exaone-moe": Family(
            _turns(
                "{% if message.role in ('system', 'user', 'assistant', 'tool') %}"
                "<|" + _ROLE + "|>\n" + _TRIMMED + "<|endofturn|>{{ '\n' }}{% endif %}",
                "<|assistant|>\n",
            ),
            "<|endofturn|>",
        ),
        "rwkv-world": Family(
            _turns(
                _by_role(
                    ("system", "System: " + _TRIMMED + "\n\n"),
                    (
                        "user",
                        "User: " + _TRIMMED + "\n\n{% if loop.last %}Assistant:{% endif %}",
                    ),
                    ("assistant", "Assistant: " + _TRIMMED + "\n\n"),
                )
            ),
            "\n\n",
        ),
        "granite": Family(
            _granite("<|start_of_role|>assistant_tool_call<|end_of_role|><|tool_call|>"),
            "<|end_of_text|>",
        ),
        **{
            name: Family(
                _granite("<|start_of_role|>assistant<|end_of_role|><|tool_call|>"),
                "<|end_of_text|>",
            )
            for name in ("granite-4.0", "granite-4.1")
        },
        "gigachat": Family(
            "<s>{% if " + _HAS_SYSTEM + " %}{{ messages[0].content }}<|message_sep|>{% endif %}"
            "{% for message in messages[1 if "
            + _HAS_SYSTEM
            + " else 0:] %}"
            + _by_role(
                (
                    "user",
                    "user<|role_sep|>" + _TEXT + "<|message_sep|>"
                    "available functions<|role_sep|>[]<|message_sep|>",
                ),
                ("assistant", "assistant<|role_sep|>" + _TEXT + "<|message_sep|>"),
            )
            + "{% endfor %}{% if add_generation_prompt %}assistant<|role_sep|>{% endif %}",
            "<|message_sep|>",
        ),
        "megrez": _plain(
            "<|role_start|>" + _ROLE + "<|role_end|>",
            _TEXT,
            "<|turn_end|>",
            "<|role_start|>assistant<|role_end|>",
        ),
        "yandex": Family(
            _turns(
                _by_role(
                    ("user", "{{ ' ' }}Пользователь: " + _TEXT + "\n\n"),
                    ("assistant", "{{ ' ' }}Ассистент: " + _TEXT + "\n\n"),
                ),
                "{{ ' ' }}Ассистент:[SEP]",
            ),
            "\n\n",
        ),
        "bailing": Family(_bailing(""), ""),
        "bailing-think": Family(_bailing("", "<think>"), ""),
        "bailing2": Family(
            _bailing(
                "<|role_end|>",
                before="{% if not " + _HAS_SYSTEM + " %}"
                "<role>SYSTEM</role>detailed thinking off<|role_end|>{% endif %}",
            ),
            "<|role_end|>",
        ),
        "smolvlm": Family(
            _turns(
                _by_role(
                    ("system", _TEXT + "\n\n"),
                    ("user", "User: " + _TEXT + "<end_of_utterance>\n"),
                    otherwise="Assistant: " + _TEXT + "<end_of_utterance>\n",
                ),
                "Assistant:",
                before="<|im_start|>",
            ),
            "<end_of_utterance>",
        ),
        "hunyuan-moe": Family(
            _turns(
                _by_role(
                    ("system", "<|startoftext|>" + _TEXT + "<|extra_4|>"),
                    ("assistant", _TEXT + "<|eos|>"),
                    otherwise="<|startoftext|>" + _TEXT + "<|extra_0|>",
                )
            ),
            "<|eos|>",
        ),
        "hunyuan-dense": Family(
            _turns(
                "{% if message.role == 'system' and loop.first %}"
                + _TEXT
                + "<｜hy_place▁holder▁no▁3｜>{% endif %}"
                + _by_role(
                    ("assistant", "<｜hy_Assistant｜>" + _TEXT + "<｜hy_place▁holder▁no▁2｜>"),
                    ("user", "<｜hy_User｜>" + _TEXT + "<｜hy_Assistant｜>"),
                )
            ),
            "<｜hy_place▁holder▁no▁2｜>",
        ),
        "hunyuan-vl": Family(
            _turns(
                "{% if message.role == 'system' and loop.first %}"
                + _TEXT
                + "<｜hy_place▁holder▁no▁3｜>{% endif %}"
                + _by_role(
                    ("user", _TEXT + "<｜hy_User｜>"),
                    ("assistant", _TEXT + "<｜hy_Assistant｜>"),
                ),
                before="<｜hy_begin▁of▁sentence｜>",
            ),
            "",
        ),
        "gpt-oss": Family(
            _turns(
                "<|start|>"
                + _ROLE
                + "<|message|>"
                + _TEXT
                # An end token there: a turn that is over, with the tokens it was sampled with.
                + "{{ '<|return|>' if message.role == 'assistant' else '<|end|>' }}",
                "<|start|>assistant",
            ),
            "<|return|>",
        ),
        "kimi-k2": Family(
            _turns(
                _by_role(
                    ("system", "<|im_system|>system<|im_middle|>"),
                    ("user", "<|im_user|>user<|im_middle|>"),
                    ("assistant", "<|im_assistant|>assistant<|im_middle|>"),
                    ("tool", "<|im_system|>tool<|im_middle|>"),
                )
                + _TEXT
                + "<|im_end|>",
                "<|im_assistant|>assistant<|im_middle|>",
            ),
            "<|im_end|>",
        ),
        "seed_oss": Family(
            _turns(
                "<seed:bos>"
                + _ROLE
                + "\n"
                + _by_role(("assistant", _TRIMMED), otherwise=_TEXT)
                + "<seed:eos>",
                "<seed:bos>assistant\n",
            ),
            "<seed:eos>",
        ),
        "grok-2": Family(
            _turns(
                _by_role(
                    ("system", "System: " + _TRIMMED + "<|separator|>\n\n"),
                    ("user", "Human: " + _TRIMMED + "<|separator|>\n\n"),
                    ("assistant", "Assistant: " + _TEXT + "<|separator|>\n\n"),
                ),
                "Assistant:",
            ),
            "<|separator|>",
        ),
        "pangu-embedded": Family(
            _turns(
                pangu_turn,
                "[unused9]助手：",
                before=_PANGU_ROLES
                + "{% if not "
                + _HAS_SYSTEM
                + " %}[unused9]系统：[unused10]{% endif %}",
            ),
            "[unused10]",
        ),
        "solar-open": _plain(
            "<|begin|>" + _ROLE + "<|content|>", _TEXT, "<|end|>", "<|begin|>assistant"
        ),
    }


FAMILIES: Mapping[str, Family] = types.MappingProxyType(dict(sorted(_named().items())))
