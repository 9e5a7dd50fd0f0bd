"""Baichuan 1 and 2: the 13B models have ALiBi in place of RoPE."""

from rfjax.models.arch import ArchSpec, Sizes

_LAYERS_OF_13B = 40


def alibi(sizes: Sizes) -> float:
    """Only the number of layers tells the two kinds apart."""
    return 8.0 if sizes.n_layers == _LAYERS_OF_13B else 0.0


SPEC = ArchSpec(name="baichuan", pairing="interleaved", alibi=alibi)
