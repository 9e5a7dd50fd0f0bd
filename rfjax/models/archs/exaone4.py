"""EXAONE 4: norms behind attention and network only; the 32B model has windows, and its full layers
do not rotate."""

from rfjax.models.arch import POST_NORMS, ArchSpec, Window
from rfjax.models.config import QKNorm

_LAYERS_OF_32B = 64

SPEC = ArchSpec(
    name="exaone4",
    pairing="half",
    norms=POST_NORMS,
    qk_norm=QKNorm(),
    window=Window(period=4, size=4096, n_layers=_LAYERS_OF_32B),
    rotated="windowed",
    rope_factors=True,
)
