"""The table of supported architectures. Adding one is a file with a SPEC, and a row here."""

import difflib

from rfjax.errors import UnsupportedError
from rfjax.models import llama, mistral3, qwen2, qwen3, qwen3moe
from rfjax.models.arch import ArchSpec

ARCHITECTURES: dict[str, ArchSpec] = {
    module.SPEC.name: module.SPEC for module in (llama, mistral3, qwen2, qwen3, qwen3moe)
}


def find_architecture(name: str) -> ArchSpec:
    """The table's row of that name.

    Raises:
        UnsupportedError: no such row; the message names the nearest and all supported ones.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
    hint = f" (the nearest name is {near[0]!r})" if near else ""
    raise UnsupportedError(
        f"architecture {name!r} is not supported{hint}; supported: {', '.join(ARCHITECTURES)}"
    )
