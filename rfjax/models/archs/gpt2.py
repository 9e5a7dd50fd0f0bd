"""GPT-2: learned positions, LayerNorms, biases everywhere, a network without a gate."""

import dataclasses

from rfjax.models.archs import gptneox

SPEC = dataclasses.replace(
    gptneox.SPEC, name="gpt2", pairing=None, parallel="never", positions="always"
)
