"""From a file's mapped bytes to arrays on devices, in pieces: little else is held meanwhile.

Quantized blocks are re-ordered where they will lie: a piece of raw bytes goes to the device, and a
compiled function writes its planes into those of the whole tensor. Over a mesh each device gets
the bytes of its own share only.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import mmap
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rfjax.io.storage import Plane, Storage
from rfjax.quant.formats import dequantize, dequantize_numpy
from rfjax.quant.qtensor import QTensor, pack
from rfjax.quant.types import BLOCK_SIZES, GGMLType
from rfjax.typing import Array, Int, UInt8

PIECE_BYTES = 16 << 20
"""Most raw bytes of a tensor that a device packs or decodes at a time."""

WORKERS = 4
"""Leaves loaded at a time: while one is compiled for or read, another is copied."""

_PACKING_FACTOR = 8
"""Bytes that a device takes to pack or decode a piece, for each of the piece's own, from above."""

_DECODED_AT_A_TIME = 1 << 18
"""Elements that the host decodes at a time: they stay in a processor's cache."""

_ALIGNMENT = 64
"""The CPU's devices take host memory that starts at a multiple of it without a copy."""


_MAPPED_FROM = 1 << 20
"""Bytes from which host memory is mapped by itself, and given back as soon as it is not used. What
several threads allocate and free of such sizes the C library keeps: layers that come and go took
twice the memory."""


def place(storage: Storage, raws: Sequence[np.ndarray]) -> jax.Array | QTensor:
    """One leaf on its devices.

    Args:
        storage: how it is held.
        raws: uint8 [nbytes], the bytes of each of its sources; only read, and not kept.
    """
    if storage.how == "packed":
        return QTensor(_build(storage, raws), storage.type, storage.sharding)
    if storage.how == "decoded" and _decodes_on_device(storage):
        return _build(storage, raws)[""]
    ((name, plane),) = storage.planes.items()
    held = _copy(storage, raws, plane) if storage.how == "copied" else _decode(storage, raws, plane)
    array = jax.device_put(held, plane.sharding)  # the CPU takes such memory over as it is
    return (
        array
        if storage.dtype is not None
        else QTensor({name: array}, storage.type, storage.sharding)
    )


def loading_bytes(storages: Iterable[Storage]) -> int:
    """Bytes of a device that loading takes beside the weights, from above."""
    transients = [0]
    for storage in storages:
        if storage.how == "packed" or (storage.how == "decoded" and _decodes_on_device(storage)):
            raw = sum(info.nbytes for info in storage.sources)
            transients.append(_PACKING_FACTOR * min(raw, PIECE_BYTES))
        elif jax.default_backend() == "cpu" and storage.sharding is not None:
            # The whole on the host, which is where its shares go too.
            transients.append(math.prod(storage.spec.shape) * 4)
    return sum(sorted(transients)[-WORKERS:])


def _decodes_on_device(storage: Storage) -> bool:
    """Matrices on one accelerator; the CPU is faster with NumPy, and shares may cut blocks."""
    plane = storage.planes[""]
    one_type = len({info.type for info in storage.sources}) == 1
    there = jax.default_backend() != "cpu" and plane.sharding is None
    return there and one_type and not storage.spec.wide


def _copy(storage: Storage, raws: Sequence[np.ndarray], plane: Plane) -> np.ndarray:
    """The bytes as they are. On the CPU not the file's own pages, which the file's owner may
    change or cut off."""
    dtype = jnp.dtype(plane.dtype)
    shape = plane.shape[1:] if len(raws) > 1 else plane.shape
    if jax.default_backend() != "cpu":
        views = [raw.view(dtype).reshape(shape) for raw in raws]
        return views[0] if len(views) == 1 else np.stack(views)
    held = _empty(plane.shape, dtype)
    flat = held.reshape(-1).view(np.uint8)
    start = 0
    for raw in raws:
        flat[start : start + raw.size] = raw
        start += raw.size
    return held


def _decode(storage: Storage, raws: Sequence[np.ndarray], plane: Plane) -> np.ndarray:
    """The values of a leaf, in its dtype, on the host."""
    held = _empty(plane.shape, jnp.dtype(plane.dtype))
    flat = held.reshape(-1)
    start = 0
    for raw, info in zip(raws, storage.sources, strict=True):
        elements, nbytes = BLOCK_SIZES[info.type]
        step = max(1, _DECODED_AT_A_TIME // elements)
        blocks = raw.reshape(-1, nbytes)
        for first in range(0, len(blocks), step):
            piece = blocks[first : first + step]
            count = len(piece) * elements
            flat[start : start + count] = dequantize_numpy(piece, info.type, (count,))
            start += count
    return held


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that a device of the CPU can take over as it is."""
    size = math.prod(shape) * dtype.itemsize
    if size < _MAPPED_FROM:
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        return memory[start : start + size].view(dtype).reshape(shape)
    mapped = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux; NumPy asks for the same
        with contextlib.suppress(OSError):  # of a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, dtype).reshape(shape)


def _build(storage: Storage, raws: Sequence[np.ndarray]) -> dict[str, jax.Array]:
    """The planes of a leaf, made on its devices from pieces of raw bytes."""
    source = _Source(storage, raws)
    split = _Split.of(storage)
    *leading, blocks, nbytes = split.local_shape(source.shape)
    size, starts = pieces(tuple(leading), blocks * nbytes)
    how = {"type": storage.type, "dtype": storage.dtype, "split": split}
    if len(starts) == 1:
        return _make(split.piece(source, starts[0], size), **how)
    planes = _allocate(
        tuple((name, plane.shape, plane.dtype) for name, plane in storage.planes.items()), split
    )
    for start in starts:
        piece = split.piece(source, start, size)
        planes = _write(planes, piece, np.asarray(start, np.int32), **how)
        # The bytes are there; what becomes of them may still be under way.
        piece.block_until_ready()
    return planes


def pieces(
    leading: tuple[int, ...], row_bytes: int
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """How a matrix `[N]` or stack `[E, N]` of rows is cut: whole, or by experts, or by rows.

    Returns:
        The size of every piece, and where each starts. All have one size, so that one program
        serves them; the last may begin inside the one before, whose rows it then writes again.
    """
    room = max(1, PIECE_BYTES // row_bytes)
    if math.prod(leading) <= room:
        return leading, [(0,) * len(leading)]
    *_, rows = leading
    if len(leading) == 2 and rows <= room:
        size = (room // rows, rows)
    else:
        size = (*(1 for _ in leading[1:]), room)
    ranges = [
        [min(start, whole - part) for start in range(0, whole, part)]
        for whole, part in zip(leading, size, strict=True)
    ]
    return size, list(itertools.product(*ranges))


class _Source:
    """The blocks of a leaf, whether they are one tensor of the file or one an expert."""

    def __init__(self, storage: Storage, raws: Sequence[np.ndarray]):
        elements, nbytes = BLOCK_SIZES[storage.type]
        *leading, k = storage.spec.shape
        self.shape = (*leading, k // elements, nbytes)
        own = self.shape[1:] if len(raws) > 1 else self.shape
        self._parts = [raw.reshape(own) for raw in raws]

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """uint8: a view of the file, or a copy where experts are apart."""
        if len(self._parts) == 1:
            return self._parts[0][index]
        return np.stack([part[index[1:]] for part in self._parts[index[0]]])


@dataclasses.dataclass(frozen=True)
class _Split:
    """How blocks `[..., rows, blocks, bytes]` and planes are spread; hashable, static in jit.

    Attributes:
        mesh: the devices, or None for one.
        raw: split of the blocks.
        planes: split of every plane, by name.
    """

    mesh: Mesh | None
    raw: PartitionSpec
    planes: tuple[tuple[str, PartitionSpec], ...]

    @classmethod
    def of(cls, storage: Storage) -> "_Split":
        if storage.sharding is None:
            return cls(None, PartitionSpec(), ())
        mesh = storage.sharding.mesh
        assert isinstance(mesh, Mesh), "weights are placed on devices that are there"
        shardings = {name: plane.sharding for name, plane in storage.planes.items()}
        planes = tuple((name, split.spec) for name, split in shardings.items() if split is not None)
        return cls(mesh, PartitionSpec(*storage.sharding.spec, None), planes)

    def local_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a device's share of the blocks."""
        if self.mesh is None:
            return shape
        return NamedSharding(self.mesh, self.raw).shard_shape(shape)

    def piece(
        self, source: _Source, start: tuple[int, ...], size: tuple[int, ...]
    ) -> UInt8[Array, "..."]:
        """The rows at `start` of every device's share, each on its device."""
        if self.mesh is None:
            return jax.device_put(source.read(_slices(start, size)))
        sharding = NamedSharding(self.mesh, self.raw)
        read: dict[tuple[int, ...], np.ndarray] = {}
        arrays = []
        for device, index in sharding.addressable_devices_indices_map(source.shape).items():
            assert index is not None
            ranges = [part.indices(n) for part, n in zip(index, source.shape, strict=True)]
            first = tuple(begin for begin, _, _ in ranges)
            if first not in read:
                own = tuple(first[i] + offset for i, offset in enumerate(start))
                columns = slice(*ranges[-2][:2])
                read[first] = source.read((*_slices(own, size), columns))
            arrays.append(jax.device_put(read[first], device))
        shares = [self.mesh.shape[axis] if axis else 1 for axis in self.raw]
        local = arrays[0].shape
        shape = tuple(n * share for n, share in zip(local, shares, strict=True))
        return jax.make_array_from_single_device_arrays(shape, sharding, arrays)

    def per_share(self, function: Callable, *more: PartitionSpec | dict) -> Callable:
        """A function from blocks to planes, for each share by itself."""
        if self.mesh is None:
            return function
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(self.raw, *more),
            out_specs=dict(self.planes),
            check_vma=False,
        )


def _slices(start: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(first, first + count) for first, count in zip(start, size, strict=True))


def _planes(raw: UInt8[Array, "..."], type: GGMLType, dtype: str | None) -> dict[str, Array]:
    """What blocks become: packed planes, or their values as the one plane ""."""
    if dtype is None:
        return pack(raw, type).planes
    *leading, blocks, _ = raw.shape
    shape = (*leading, blocks * BLOCK_SIZES[type][0])
    return {"": dequantize(raw, type, shape).astype(dtype)}


@functools.partial(jax.jit, static_argnames=("type", "dtype", "split"))
def _make(
    raw: UInt8[Array, "..."], *, type: GGMLType, dtype: str | None, split: _Split
) -> dict[str, Array]:
    """All planes of a leaf at once."""
    return split.per_share(lambda raw: _planes(raw, type, dtype))(raw)


@functools.partial(jax.jit, static_argnames=("shapes", "split"))
def _allocate(shapes: tuple[tuple[str, tuple[int, ...], str], ...], split: _Split):
    """Planes to be written piece by piece."""
    specs = dict(split.planes)
    planes = {}
    for name, shape, dtype in shapes:
        planes[name] = jnp.zeros(shape, dtype)
        if split.mesh is not None:
            sharding = NamedSharding(split.mesh, specs[name])
            planes[name] = jax.lax.with_sharding_constraint(planes[name], sharding)
    return planes


@functools.partial(jax.jit, static_argnames=("type", "dtype", "split"), donate_argnames="planes")
def _write(
    planes: dict[str, Array],
    raw: UInt8[Array, "..."],
    start: Int[Array, " leading"],
    *,
    type: GGMLType,
    dtype: str | None,
    split: _Split,
) -> dict[str, Array]:
    """The planes with a piece written at `start`, in place."""

    def write(raw, start, planes):
        made = _planes(raw, type, dtype)
        at = lambda plane: (*start, *[0] * (plane.ndim - len(start)))  # noqa: E731
        return {
            name: jax.lax.dynamic_update_slice(plane, made[name], at(plane))
            for name, plane in planes.items()
        }

    apply = split.per_share(write, PartitionSpec(), dict(split.planes))
    return apply(raw, start, planes)
