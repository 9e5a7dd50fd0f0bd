"""The table of kernels in docs/kernels.md: every case, compiled for every AMD target.

`make kernels`, or `python -m support.kernel_table` in `tests/`, makes it anew, which takes minutes,
and ends with an error when a kernel is not fit for a target.
"""

import concurrent.futures
import multiprocessing
import os
import pathlib
import re
import sys

from support.amdgcn import Code
from support.kernel_cases import kernel_cases
from support.kernel_check import compiled, faults_of
from support.rocm import TARGETS

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "kernels.md"

_BEGIN, _END = "<!-- begin: make kernels -->\n", "<!-- end: make kernels -->\n"

Row = tuple[str, str]  # names of the case and of the kernel


def generated(document: str) -> str:
    """The part of the document that is generated."""
    return document.split(_BEGIN)[1].split(_END)[0]


def named_cases(document: str) -> set[str]:
    """Names of the cases that the document's tables have rows for."""
    rows = re.findall(r"^\| (.+?) \|", generated(document), re.MULTILINE)
    return set(rows) - {"case", "---"}


def with_tables(document: str, tables: str) -> str:
    """The document with its generated part replaced."""
    head, rest = document.split(_BEGIN)
    return head + _BEGIN + tables + _END + rest.split(_END)[1]


def resources(code: Code) -> str:
    """A cell: registers, local memory, matrix instructions; and what should not be."""
    spilled = (
        f" (**{code.spills} spilled, {code.scratch} B scratch**)"
        if code.spills or code.scratch
        else ""
    )
    return f"{code.registers} / {code.lds} / {code.matrix}{spilled}"


def loads(code: Code) -> str:
    """A cell: width of loads by how many instructions have it."""
    return ", ".join(f"{width} x {count}" for width, count in code.loads)


def table(codes: dict[Row, dict[str, Code]], cell) -> str:
    """One table in Markdown; a kernel that a target does without leaves its cell empty."""
    lines = [("case", "kernel", *TARGETS), ("---",) * (2 + len(TARGETS))]
    for names, by_target in codes.items():
        cells = (cell(by_target[arch]) if arch in by_target else "" for arch in TARGETS)
        lines.append((*names, *cells))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def compile_one(index: int, arch: str) -> tuple[dict[str, Code], list[str]]:
    """One case on one target, by its place in the registry: codes by kernel name, and faults."""
    case = kernel_cases()[index]
    codes = compiled(case, arch)
    where = f"{case.name} on {arch}"
    return (
        {kernel.name: code for kernel, code in codes.items()},
        [f"{where}: {fault}" for fault in faults_of(case, codes)],
    )


def main() -> None:
    """Compiles everything and writes the tables."""
    cases = kernel_cases()
    jobs = [(index, arch) for index, case in enumerate(cases) for arch in case.targets]
    codes: dict[Row, dict[str, Code]] = {}
    found = []
    # Fresh processes: the compiler and JAX have threads, which a fork would lose.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        results = pool.map(compile_one, *zip(*jobs, strict=True))
        for (index, arch), (by_kernel, faults) in zip(jobs, results, strict=True):
            for kernel, code in by_kernel.items():
                codes.setdefault((cases[index].name, kernel), {})[arch] = code
            found += faults
    tables = (
        "Vector registers / bytes of LDS / matrix instructions:\n\n"
        f"{table(codes, resources)}\n"
        "Loads from global memory, their width in bytes x how many instructions:\n\n"
        f"{table(codes, loads)}"
    )
    document = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(with_tables(document, tables), encoding="utf-8")
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
