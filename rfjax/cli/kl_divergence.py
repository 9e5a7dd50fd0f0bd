"""`rfjax perplexity --kl-divergence`: a model beside the base of a file."""

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rfjax.cli.output import note, write, write_json
from rfjax.cli.running import running_output

if TYPE_CHECKING:
    from rfjax.evals.kl.kl_statistics import KLStatistics
    from rfjax.llm import LLM


def check_base(path: Path) -> None:
    """Refuse a file that is no base's, before the model is loaded.

    Raises:
        RequestError: it cannot be read.
        ModelFormatError: it is something else, or damaged.
    """
    from rfjax.evals.kl.kl_base_file import reading

    with reading(path):
        pass


def run_kl_divergence(
    llm: "LLM",
    base: Path,
    *,
    chunks: int | None,
    tokens_per_batch: int,
    json: bool,
    quiet: bool,
) -> None:
    """Print how far the model is from the base.

    Args:
        llm: the model.
        base: the file; the text's tokens are in it.
        chunks: how many at most; None for all.
        tokens_per_batch: computed at a time, in whole chunks.
        json: print one JSON object instead of llama-perplexity's lines.
        quiet: print no summary on stderr.
    """
    from rfjax.evals.kl import kl_report
    from rfjax.evals.kl.against_file import kl_divergence
    from rfjax.evals.kl.kl_base_file import reading
    from rfjax.evals.records.provenance import with_provenance

    start = time.perf_counter()
    with reading(base) as (header, _):
        at_a_time = max(1, tokens_per_batch // header.n_ctx)
    with running_output(printing=not json, start=kl_report.HEADER) as tell:

        def on_chunk(done: int, total: int, statistics: "KLStatistics") -> None:
            means = statistics.means()
            tell(done, total, f"KLD {means.kld.value:.6f}", kl_report.chunk_line(done, means))

        result = kl_divergence(
            llm.model, base, chunks=chunks, batch_size=at_a_time, on_chunk=on_chunk
        )
    seconds = time.perf_counter() - start
    n_tokens = result.n_chunks * result.n_ctx
    if json:
        names = {"model": llm.model.path, "kl_divergence_base": {"file": str(base)}}
        with base.open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        chosen = {"base": digest, "chunks": chunks, "tokens_per_batch": tokens_per_batch}
        figures = {**names, **vars(result), "seconds": seconds}
        write_json(with_provenance(figures, llm.model, chosen))
    else:
        write(kl_report.report(result.summary))
    if not quiet:
        note(
            f"{n_tokens} tokens ({result.n_chunks} chunks of {result.n_ctx}, "
            f"{result.summary.count} compared) in {seconds:.2f} s: {n_tokens / seconds:.1f} "
            "tokens/s, compilation included"
        )
