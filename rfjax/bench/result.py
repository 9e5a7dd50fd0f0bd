"""One measured row, with llama-bench's names for what it has too."""

import dataclasses
import statistics


@dataclasses.dataclass(frozen=True)
class Environment:
    """What was measured on, and with.

    Attributes:
        build_commit: version of rfjax.
        jax_version: version of JAX.
        backends: "CPU", "CUDA" or "ROCm".
        cpu_info: of the host.
        gpu_info: the device's kind; empty on the CPU.
    """

    build_commit: str
    jax_version: str
    backends: str
    cpu_info: str
    gpu_info: str


@dataclasses.dataclass(frozen=True)
class Result:
    """A row; rates are over all sequences together.

    Attributes:
        model_size: bytes of the tensors as a file stores them.
        n_ubatch: most prompt tokens of a sequence computed in one step.
        type_k, type_v: what the cache holds.
        dtype: of the activations.
        weights: "packed" as the file has them, or "dequantized" to `dtype`.
        implementation: of operations, "auto", "xla" or "pallas".
        n_prompt, n_gen, n_depth, n_seqs, n_score: the case; see `rfjax.bench.case.Case`.
        test: its name.
        test_time: when it began, UTC.
        warmup_s: seconds of the first run, compilation included.
        samples_ns: of the repetitions.
        n_tokens: tokens of a repetition.
        bytes_read: that a repetition must read of weights and cache; 0 where that is not what
            limits it (see `rfjax.bench.traffic`).
        flops: floating point operations of a repetition.
        copy_bytes_per_s, matmul_flop_per_s: the device's measured ceilings; None if not measured.
    """

    environment: Environment
    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_ubatch: int
    type_k: str
    type_v: str
    dtype: str
    weights: str
    implementation: str
    n_prompt: int
    n_gen: int
    n_depth: int
    n_seqs: int
    n_score: int
    test: str
    test_time: str
    warmup_s: float
    samples_ns: tuple[int, ...]
    n_tokens: int
    bytes_read: int
    flops: int
    copy_bytes_per_s: float | None
    matmul_flop_per_s: float | None

    @property
    def avg_ns(self) -> float:
        """Mean of the repetitions."""
        return statistics.fmean(self.samples_ns)

    @property
    def samples_ts(self) -> tuple[float, ...]:
        """Tokens per second of the repetitions."""
        return tuple(1e9 * self.n_tokens / ns for ns in self.samples_ns)

    @property
    def avg_ts(self) -> float:
        """Mean of the repetitions' rates."""
        return statistics.fmean(self.samples_ts)

    @property
    def gb_per_s(self) -> float | None:
        """Bytes that must be read, in 1e9 a second; None where reading is not the limit."""
        return self.bytes_read / self.avg_ns if self.bytes_read else None

    @property
    def tflop_per_s(self) -> float:
        """Operations in 1e12 a second."""
        return self.flops / self.avg_ns / 1e3

    @property
    def copy_share(self) -> float | None:
        """Of the measured copy bandwidth, 1 for all of it."""
        if self.gb_per_s is None or self.copy_bytes_per_s is None:
            return None
        return self.gb_per_s * 1e9 / self.copy_bytes_per_s

    @property
    def matmul_share(self) -> float | None:
        """Of the measured rate of a matrix product, 1 for all of it."""
        if self.matmul_flop_per_s is None:
            return None
        return self.tflop_per_s * 1e12 / self.matmul_flop_per_s

    def record(self) -> dict[str, object]:
        """Everything as plain values under the names of the output formats."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        environment = dataclasses.asdict(own.pop("environment"))
        samples_ns = own.pop("samples_ns")
        return {
            **environment,
            **own,
            "avg_ns": round(self.avg_ns),
            "stddev_ns": round(_deviation(self.samples_ns)),
            "avg_ts": self.avg_ts,
            "stddev_ts": _deviation(self.samples_ts),
            "gb_per_s": self.gb_per_s,
            "copy_share": self.copy_share,
            "tflop_per_s": self.tflop_per_s,
            "matmul_share": self.matmul_share,
            "samples_ns": list(samples_ns),
            "samples_ts": list(self.samples_ts),
        }


def _deviation(samples: tuple[float, ...]) -> float:
    """Of a sample, as llama-bench has it; 0 for a single one."""
    return statistics.stdev(samples) if len(samples) > 1 else 0.0
