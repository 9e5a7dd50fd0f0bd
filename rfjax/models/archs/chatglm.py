"""ChatGLM 2 to 4: biases on Q, K and V, fused gate and up."""

from rfjax.models.arch import ArchSpec

SPEC = ArchSpec(name="chatglm", pairing="interleaved", fused_gate_up=True)
