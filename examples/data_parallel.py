"""One evaluation over all devices: every device scores its share of the rows by itself.

python examples/data_parallel.py [MODEL.gguf TEXT.txt] takes the devices there are. To try it
without any: XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu python ...
"""

import functools
import math
import pathlib
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import rfjax
from rfjax.evals.score import score

MODELS = pathlib.Path(__file__).parent / "models"
LENGTH, ROWS = 64, 16


def main(
    path: str | pathlib.Path = MODELS / "shakespeare.gguf",
    text: str | pathlib.Path = MODELS / "shakespeare-heldout.txt",
    n_devices: int | None = None,
) -> np.ndarray:
    model = rfjax.load(path)
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(pathlib.Path(text).read_text(encoding="utf-8"))
    rows = np.asarray(ids[: ROWS * LENGTH], np.int32).reshape(ROWS, LENGTH)
    mask = np.broadcast_to(np.arange(LENGTH) > 0, rows.shape)

    devices = jax.devices()[:n_devices]
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    everywhere, by_rows = PartitionSpec(), PartitionSpec("data")
    share = functools.partial(score, config=model.config)
    evaluate = jax.jit(
        jax.shard_map(share, mesh=mesh, in_specs=(everywhere, by_rows, by_rows), out_specs=by_rows)
    )
    params = jax.device_put(model.params, NamedSharding(mesh, everywhere))
    padding = -ROWS % len(devices)  # as many rows for each: those that are added score nothing
    rows, mask = (np.pad(array, ((0, padding), (0, 0))) for array in (rows, mask))
    result = evaluate(params, rows, mask)
    for part in result.addressable_shards:
        print(f"{part.device}: {part.data.shape[0]} of {len(rows)} rows of {LENGTH} tokens")
    logprobs = np.asarray(result)[:ROWS]
    print(f"perplexity {math.exp(-logprobs.sum(dtype=np.float64) / (ROWS * (LENGTH - 1))):.4f}")
    return logprobs


if __name__ == "__main__":
    main(*sys.argv[1:3])
