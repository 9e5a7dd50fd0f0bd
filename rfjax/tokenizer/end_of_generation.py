"""Which tokens end a generation: those that a file names, and those whose text says so.

Files often name only one end token, or the one of the base model, so llama.cpp knows the others by
their texts; this follows its rules (`special_eog_ids` in its llama-vocab.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rfjax.tokenizer.attribute import Attribute

_END_TEXTS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>"),
    *("<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]"),
    *("<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>"),
    *("<｜end▁of▁sentence｜>", "[e~["),
)
# Fill-in-the-middle roles by metadata key: a role that a file leaves out is found by its text.
_FILL_TEXTS: dict[str, tuple[str, ...]] = {
    "fim_pre": (
        *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>"),
        *("▁<PRE>", "<|code_prefix|>", "<|prefix|>"),
    ),
    "fim_suf": (
        *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>"),
        *("▁<SUF>", "<|code_suffix|>", "<|suffix|>"),
    ),
    "fim_mid": (
        *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>"),
        *("▁<MID>", "<|code_middle|>", "<|middle|>"),
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_ENDING_FILLS = ("fim_pad", "fim_rep", "fim_sep")
_ALWAYS_TEXT = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
FILL_ROLES = tuple(_FILL_TEXTS)


def resolve_by_text(
    ids: Mapping[str, int], attributes: np.ndarray, special_ids: dict[str, int]
) -> frozenset[int]:
    """Finds roles by the tokens' texts, as files often leave them out.

    Adds to `special_ids` and corrects `attributes` in place, and returns the tokens that end a
    generation: those named so by a key, and those whose text means it in some family of models.
    """
    for role, texts in _FILL_TEXTS.items():
        found = next((ids[text] for text in texts if text in ids), None)
        if role not in special_ids and found is not None:
            special_ids[role] = found
            attributes[found] |= Attribute.CONTROL
    by_text = {ids[text] for text in _END_TEXTS if text in ids}
    for id_ in by_text:
        attributes[id_] |= Attribute.CONTROL
    for text in _ALWAYS_TEXT:  # the harmony format's headers are part of the answer
        if text in ids:
            attributes[ids[text]] = Attribute.USER_DEFINED
    roles = ("eos", "eot", "eom", *_ENDING_FILLS)
    ends = by_text | {special_ids[role] for role in roles if role in special_ids}

    def has(text: str) -> bool:
        return ids.get(text) in ends

    harmony = has("<|return|>") and (has("<|call|>") or has("<|calls|>"))
    solar = has("<|flush|>") and (has("<|call|>") or has("<|calls|>"))
    if (harmony or solar) and has("<|end|>"):  # ends a message there, not the turn
        ends.remove(ids["<|end|>"])
        attributes[ids["<|end|>"]] = Attribute.USER_DEFINED
    if (has("<|tool_response>") or has("<|plamo:eos|>")) and has("</s>"):  # an HTML tag there
        ends.remove(ids["</s>"])
        attributes[ids["</s>"]] = Attribute.NORMAL
    return frozenset(ends)
