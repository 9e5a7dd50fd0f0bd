"""DeepSeek 2, 2.5, 3 and R1: latent attention, dense layers first, grouped and shared experts."""

from rfjax.models.arch import ArchSpec, Mixture

SPEC = ArchSpec(
    name="deepseek2",
    pairing="interleaved",
    latent=True,
    mixture=Mixture(
        normalize=None,
        width="stated",
        selection_bias="optional",
        shared="by_count",
        keys=frozenset(
            {
                "expert_gating_func",
                "expert_group_count",
                "expert_weights_scale",
                "leading_dense_block_count",
            }
        ),
    ),
    keys=frozenset(
        {
            "attention.temperature_length",
            "attention.temperature_scale",
            "rope.scaling.yarn_log_multiplier",
        }
    ),
)
