"""GLM 4.5: dense layers first, then experts chosen by sigmoids, and a shared one."""

from rfjax.models.arch import ArchSpec, Mixture
from rfjax.models.config import QKNorm

SPEC = ArchSpec(
    name="glm4moe",
    pairing="half",
    qk_norm=QKNorm(),
    qk_norm_optional=True,
    sections=True,
    mixture=Mixture(
        gating="sigmoid",
        normalize=None,
        width="shared_out",
        selection_bias="always",
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
    renames=(("ffn_norm", "post_attention_norm"),),
)
