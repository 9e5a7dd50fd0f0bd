"""The few PTX instructions that kernels name for NVIDIA GPUs, computed with NumPy.

Stands in for `plt.elementwise_inline_asm`, so that instructions are tested without the GPU.
"""

import re

import ml_dtypes
import numpy as np

_STATEMENT = re.compile(r"\s*([\w.]+)\s+([^;]+);")


def elementwise_inline_asm(asm, *, args, constraints, pack, result_shape_dtypes) -> list:
    """Run a block on every `pack` neighbouring elements; every register is 32 bits wide."""
    (result,) = result_shape_dtypes
    assert constraints == "=r" + ",r" * len(args)
    registers = [_registers(np.asarray(arg), pack) for arg in args]
    operands = {}
    for arg in registers:  # an argument of 32 bits takes a register for each element
        for register in arg:
            operands[f"${len(operands) + 1}"] = register
    out = run(asm, operands)
    assert result.dtype.itemsize * pack == 4
    return [out.view(result.dtype).reshape(result.shape)]


def _registers(arg: np.ndarray, pack: int) -> list[np.ndarray]:
    if arg.dtype.itemsize == 4:
        apart = np.ascontiguousarray(arg).view(np.uint32).reshape(-1, pack)
        return [np.ascontiguousarray(apart[:, i]) for i in range(pack)]
    assert arg.dtype.itemsize * pack == 4, (arg.dtype, pack)
    return [np.ascontiguousarray(arg).view(np.uint32).reshape(-1)]


def run(asm: str, operands: dict[str, np.ndarray]) -> np.ndarray:
    """The value of $0 after a block of PTX.

    Args:
        asm: statements, without branches.
        operands: uint32 arrays by name, "$1" and so on.
    """
    values = dict(operands)
    body = re.sub(r"\.reg[^;]*;", "", asm.strip().removeprefix("{").removesuffix("}"))
    for opcode, rest in _STATEMENT.findall(body):
        to, *names = [name.strip() for name in rest.split(",")]
        sources = [values[n] if n in values else np.uint32(int(n, 0)) for n in names]
        values[to] = _INSTRUCTIONS[opcode](*sources).astype(np.uint32)
    return values["$0"]


def _lop3(a, b, c, table):
    """Any function of three bits, by its table."""
    out = np.zeros_like(a)
    for row in range(8):
        if int(table) >> row & 1:
            bits = [x if row >> (2 - i) & 1 else ~x for i, x in enumerate((a, b, c))]
            out = out | (bits[0] & bits[1] & bits[2])
    return out


def _fma_bf16x2(a, b, c):
    halves = []
    for shift in (0, 16):
        x, y, z = (
            (np.broadcast_to(v >> np.uint32(shift), a.shape) & np.uint32(0xFFFF))
            .astype(np.uint16)
            .view(ml_dtypes.bfloat16)
            .astype(np.float64)
            for v in (a, b, c)
        )
        halves.append((x * y + z).astype(np.float32).astype(ml_dtypes.bfloat16))
    low, high = (half.view(np.uint16).astype(np.uint32) for half in halves)
    return low | high << np.uint32(16)


def _prmt(a, b, selector):
    data = [(np.asarray(x) >> np.uint32(8 * i)) & np.uint32(255) for x in (a, b) for i in range(4)]
    out = np.uint32(0)
    for i in range(4):
        nibble = (np.asarray(selector) >> np.uint32(4 * i)) & np.uint32(15)
        assert np.all(nibble < 8), "the replicating mode is not written here"
        picked = sum(np.where(nibble == j, byte, np.uint32(0)) for j, byte in enumerate(data))
        out = out | (picked << np.uint32(8 * i)).astype(np.uint32)
    return out


_INSTRUCTIONS = {
    "mov.b32": lambda a: np.asarray(a),
    "shr.b32": lambda a, n: a >> n,
    "shl.b32": lambda a, n: a << n,
    "and.b32": lambda a, b: a & b,
    "lop3.b32": _lop3,
    "prmt.b32": _prmt,
    "fma.rn.bf16x2": _fma_bf16x2,
}
