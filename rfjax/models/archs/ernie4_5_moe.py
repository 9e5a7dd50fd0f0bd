"""ERNIE 4.5, mixtures of experts: ernie4_5 with experts in all layers but the first, chosen with a
bias, and a network that they share.
"""

import dataclasses

from rfjax.models.arch import Mixture
from rfjax.models.archs import ernie4_5

SPEC = dataclasses.replace(
    ernie4_5.SPEC,
    name="ernie4_5-moe",
    mixture=Mixture(
        width="stated",
        selection_bias="optional",
        shared="by_width",
        keys=frozenset({"leading_dense_block_count"}),
    ),
)
