"""What is known of every architecture, as data: mechanisms, measured error, formats, kernels."""

import dataclasses
import functools
import importlib
import importlib.resources
import json
from collections.abc import Mapping
from types import MappingProxyType

from rfjax.models.arch import ArchSpec
from rfjax.models.architectures import ARCHITECTURES, find_architecture
from rfjax.models.config import PRE_NORMS
from rfjax.models.mechanisms import has_alibi, mechanisms
from rfjax.ops.activation import IN_KERNELS
from rfjax.ops.dispatch import KERNELS
from rfjax.quant.formats import FORMATS

LIMIT = 1e-8
"""The largest NMSE of logits in f32 with which an architecture counts as supported."""

_RECORD = "conformance.json"

_OVER_PAGES = ("paged_prefill_attention", "paged_decode_attention")


@dataclasses.dataclass(frozen=True)
class Conformance:
    """How far logits are from llama.cpp's, in f32 on the CPU.

    Attributes:
        reference: what they were compared with.
        errors: normalised mean squared errors by the name of the model compared; all are small
            models with random weights.
    """

    reference: str
    errors: Mapping[str, float]

    @property
    def nmse(self) -> float:
        """The worst of the errors."""
        return max(self.errors.values())


@dataclasses.dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        name: the value of `general.architecture`.
        models: what it stands for.
        mechanisms: in the usual terms.
        conformance: what was measured, or None.
        formats: types of weights that it runs with.
        kernels: Pallas kernels that run parts of it on GPUs, sizes and types permitting.
        fused: what one launch of a kernel computes together.
        without: kernels whose part plain JAX computes, each with the reason.
    """

    name: str
    models: str
    mechanisms: tuple[str, ...]
    conformance: Conformance | None
    formats: tuple[str, ...]
    kernels: tuple[str, ...]
    fused: tuple[str, ...]
    without: Mapping[str, str]

    @property
    def supported(self) -> bool:
        """Whether it was compared with the reference, and every model agreed."""
        return self.conformance is not None and self.conformance.nmse <= LIMIT


def catalog() -> tuple[Entry, ...]:
    """Every architecture of the table, in its order."""
    return tuple(find_entry(name) for name in ARCHITECTURES)


def find_entry(name: str) -> Entry:
    """One architecture.

    Raises:
        UnsupportedError: no such row; the message names the nearest and all supported ones.
    """
    spec = find_architecture(name)
    without = declined_kernels(spec)
    experts = spec.mixture is not None
    used = [k for op, names in KERNELS.items() if experts or op != "expert_ffn" for k in names]
    return Entry(
        name=name,
        models=_models(name),
        mechanisms=mechanisms(spec),
        conformance=conformance_record().get(name),
        formats=tuple(type.name for type in FORMATS),
        kernels=tuple(kernel for kernel in dict.fromkeys(used) if kernel not in without),
        fused=fused_products(spec),
        without=MappingProxyType(without),
    )


def declined_kernels(spec: ArchSpec) -> dict[str, str]:
    """Kernels that do not take what the architecture has, each with the reason."""
    if spec.latent:
        reason = "latent attention over a cache is plain JAX"
        return dict.fromkeys((*_OVER_PAGES, "decode_attention"), reason)
    terms = {
        "soft caps": spec.softcap or "attn_logit_softcapping" in spec.keys,
        "sinks": spec.sinks,
        "ALiBi": has_alibi(spec),
    }
    found = [name for name, there in terms.items() if there]
    if not found:
        return {}
    return {"decode_attention": f"over dense rows it does not take {' and '.join(found)}"}


def fused_products(spec: ArchSpec) -> tuple[str, ...]:
    """What one launch of a kernel computes together in a decode step."""
    before = spec.norms & PRE_NORMS
    plain = spec.norm == "rms" and spec.norm_weights
    parts = {
        "norm+products": plain and before and not before & spec.biases,
        "QKV": not spec.latent,
        "gate+up": spec.gated and spec.activation in IN_KERNELS,
    }
    return tuple(name for name, there in parts.items() if there)


@functools.cache
def conformance_record() -> Mapping[str, Conformance]:
    """What was measured, by architecture; `make archs` writes it."""
    folder = importlib.resources.files("rfjax.models.archs")
    record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    return MappingProxyType(
        {
            name: Conformance(record["reference"], MappingProxyType(errors))
            for name, errors in record["errors"].items()
        }
    )


def _models(name: str) -> str:
    """The models of an architecture: what its file's first line says before how it differs."""
    module = importlib.import_module(f"rfjax.models.archs.{name.replace('-', '_')}")
    first = (module.__doc__ or name).split("\n\n")[0].replace("\n", " ")
    return first.partition(":")[0].removesuffix(".")
