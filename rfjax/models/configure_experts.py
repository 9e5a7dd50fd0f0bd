"""From GGUF metadata to mixtures of experts."""

from rfjax.errors import UnsupportedError
from rfjax.models.arch import ArchSpec, Mixture
from rfjax.models.config import Experts, Gating
from rfjax.models.hyperparameters import Hyperparameters

_MAX_EXPERTS = 4096

_GATINGS: dict[int, Gating] = {1: "softmax", 2: "sigmoid", 3: "softmax_of_chosen"}
"""By the value of `expert_gating_func`."""


def mixtures(
    hyper: Hyperparameters, spec: ArchSpec, n_layers: int, stored: int
) -> tuple[Experts | None, ...]:
    """The mixture of every layer, or None for a dense one.

    Args:
        hyper: the file's metadata.
        spec: its architecture.
        n_layers: layers of the decoder.
        stored: layers that the file has, of which arrays have an element each.
    """
    mixture = spec.mixture
    n_experts = hyper.count("expert_count")
    if mixture is None or (mixture.when == "optional" and n_experts == 0):
        return (None,) * n_layers
    n_dense = 0
    if "leading_dense_block_count" in mixture.keys:
        n_dense = hyper.count("leading_dense_block_count", most=n_layers)
    if n_experts == 0 and n_dense == n_layers:  # Youtu's models: deepseek2 without experts
        return (None,) * n_layers
    hyper.check_size("expert_count", n_experts, _MAX_EXPERTS)
    n_used = hyper.size("expert_used_count")
    if n_used > n_experts:
        hyper.refuse("expert_used_count", str(n_used), f"at most the {n_experts} experts")
    n_groups, n_groups_used = _groups(hyper, mixture, n_experts)
    widths = _widths(hyper, mixture, stored, n_used, n_dense)
    shared = _shared(hyper, mixture, widths, stored)
    normalize = mixture.normalize
    if normalize is None:
        normalize = hyper.flag("expert_weights_norm", False)
    scale = 0.0
    if "expert_weights_scale" in mixture.keys:
        scale = hyper.number("expert_weights_scale", default=0.0)
    experts = []
    for layer in range(n_layers):
        if layer < n_dense:
            experts.append(None)
            continue
        bias = mixture.selection_bias == "always" or (
            mixture.selection_bias == "optional"
            and f"blk.{layer}.exp_probs_b.bias" in hyper.gguf.tensors
        )
        experts.append(
            Experts(
                n_experts,
                n_used,
                widths[layer],
                normalize=normalize,
                scale=scale or 1.0,
                gating=_gating(hyper, mixture),
                selection_bias=bias,
                n_groups=n_groups,
                n_groups_used=n_groups_used,
                shared_dim=shared[layer],
                shared_gate=mixture.shared_gate and shared[layer] > 0,
            )
        )
    return tuple(experts)


def _widths(
    hyper: Hyperparameters, mixture: Mixture, stored: int, n_used: int, n_dense: int
) -> tuple[int, ...]:
    """Of an expert in every layer; those of the first, dense ones do not matter."""
    name = "expert_feed_forward_length"
    widths = hyper.gguf.get_ints(hyper.key(name), stored, (0,) * stored)
    if not any(widths) and mixture.width != "stated":
        name = "feed_forward_length"
        widths = hyper.per_layer(name, stored)
        if mixture.width == "shared_out":
            widths = tuple(width // n_used for width in widths)
    elif not hyper.has(name):
        hyper.size(name)  # raises: the key must be there
    for width in widths[n_dense:]:
        hyper.check_size(name, width)
    return widths


def _shared(
    hyper: Hyperparameters, mixture: Mixture, widths: tuple[int, ...], stored: int
) -> tuple[int, ...]:
    """Width of the shared network in every layer, 0 for none."""
    if mixture.shared == "never":
        return (0,) * stored
    if mixture.shared == "by_count":
        count = hyper.count("expert_shared_count", most=_MAX_EXPERTS)
        return tuple(width * count for width in widths)
    width = hyper.count("expert_shared_feed_forward_length")
    if not width and mixture.shared == "by_width_or_dense":
        return hyper.per_layer("feed_forward_length", stored)
    return (width,) * stored


def _gating(hyper: Hyperparameters, mixture: Mixture) -> Gating:
    value = 0
    if "expert_gating_func" in mixture.keys:
        value = hyper.count("expert_gating_func")
    if value == 0:
        return mixture.gating
    if value not in _GATINGS:
        raise UnsupportedError(
            f"{hyper.gguf.path}: {hyper.key('expert_gating_func')} is {value}; supported: "
            f"{', '.join(f'{number} ({name})' for number, name in _GATINGS.items())}"
        )
    return _GATINGS[value]


def _groups(hyper: Hyperparameters, mixture: Mixture, n_experts: int) -> tuple[int, int]:
    """How many groups of experts there are, and how many of them are used."""
    if "expert_group_count" not in mixture.keys:
        return 1, 1
    n_groups = hyper.count("expert_group_count", most=n_experts)
    if n_groups <= 1:
        return 1, 1
    if n_experts % n_groups or n_experts // n_groups < 2:
        hyper.refuse(
            "expert_group_count",
            str(n_groups),
            f"groups of equally many, at least 2, of the {n_experts} experts",
        )
    used = hyper.size("expert_group_used_count", most=n_groups)
    n_used = hyper.size("expert_used_count")
    if n_used > used * (n_experts // n_groups):
        hyper.refuse(
            "expert_group_used_count", str(used), f"groups that hold the {n_used} experts used"
        )
    return n_groups, used
