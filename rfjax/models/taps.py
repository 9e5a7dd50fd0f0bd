"""Named points between the parts of a model, where activations are read and edited.

Names follow the GGUF stems of what has just run. All values are `[T, D]` in the model's dtype:

    token_embd         what the first layer reads: the embedding, scaled, with positions and norm
    blk.N.attn_output  what attention adds to the residual stream in layer N
    blk.N.ffn          what the feed-forward network adds to it
    blk.N              the residual stream behind layer N
    output_norm        the final hidden states, which the output matrix reads

So `blk.N = blk.(N-1) + blk.N.attn_output + blk.N.ffn` in every architecture: norms behind a part,
and the scale of what is added, come before its point.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.errors import RequestError
from rfjax.models.config import ModelConfig
from rfjax.typing import Array, Float

Edit = Callable[[Float[Array, "T D"]], Float[Array, "T D"]]
"""A pure function of what passes a point, which goes on with its result."""

_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Point:
    """A point that one run of the model takes notice of.

    Attributes:
        name: of the point.
        edit: what is done to the value there, or None.
        values: what has passed, edited; one value after a run.
    """

    name: str
    edit: Edit | None
    values: list[Array] = dataclasses.field(default_factory=list)


Points = Mapping[str, Point]
"""The points of one run by name."""

NO_POINTS: Points = MappingProxyType({})


def point_names(config: ModelConfig) -> tuple[str, ...]:
    """The names of all points of a model, in the order in which they are passed."""
    return tuple(_names(len(config.layers)))


def _names(n_layers: int) -> Iterator[str]:
    yield "token_embd"
    for i in range(n_layers):
        yield from (f"blk.{i}.attn_output", f"blk.{i}.ffn", f"blk.{i}")
    yield "output_norm"


def make_points(
    config: ModelConfig, taps: Sequence[str], edits: Mapping[str, Edit] | None
) -> Points:
    """The points of one run.

    Args:
        config: of the model.
        taps: names of points whose values are asked for.
        edits: by name of the point.

    Raises:
        RequestError: a name of no point of this model, or an edit that is no function.
    """
    if isinstance(taps, str):
        raise RequestError(f"taps: got the string {taps!r}, expected names in a tuple: ({taps!r},)")
    edits = edits or {}
    known = frozenset(point_names(config))
    for argument, names in (("taps", taps), ("edits", edits)):
        for name in names:
            if name not in known:
                raise RequestError(f"{argument}: {_unknown(name, config)}")
    for name, edit in edits.items():
        if not callable(edit):
            raise RequestError(
                f"edits[{name!r}]: got {edit!r}, expected a function of the activations [T, D]"
            )
    return {name: Point(name, edits.get(name)) for name in (*taps, *edits)}


def _unknown(name: object, config: ModelConfig) -> str:
    last = len(config.layers) - 1
    near = difflib.get_close_matches(str(name), point_names(config), _SHOWN)
    meant = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    return (
        f"this model has no point {name!r}{meant}: expected 'token_embd', 'blk.N', "
        f"'blk.N.attn_output' or 'blk.N.ffn' with N from 0 to {last}, or 'output_norm'"
    )


def passed(point: Point | None, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
    """What goes on behind a point, None for one of which nobody takes notice.

    Raises:
        RequestError: its edit changes the shape or the dtype.
    """
    if point is None:
        return x
    if point.edit is not None:
        x = _edited(point.name, point.edit, x)
    point.values.append(x)
    return x


def _edited(name: str, edit: Edit, x: Array) -> Array:
    result = edit(x)
    if not isinstance(result, jax.Array | np.ndarray):
        found = f"got {result!r}"
    elif result.shape != x.shape or result.dtype != x.dtype:
        found = f"got {result.dtype}{list(result.shape)}"
    else:
        return jnp.asarray(result)
    raise RequestError(
        f"edits[{name!r}]: {found} from the function, expected {x.dtype}{list(x.shape)} as it was "
        "given (astype(x.dtype) casts)"
    )
