"""The lines in which llama-perplexity prints how far a model is from its base."""

from collections.abc import Mapping

from rfjax.evals.kl.kl_statistics import KLMeans, KLSummary, Uncertain

HEADER = (
    "\nchunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence"
    "              Δp RMS            Same top p\n"
)
"""What stands above the chunks' lines."""

LEAST_TOKENS = 100
"""With fewer, llama-perplexity prints no statistics."""

_NAMES = {0.0: "Minimum", 50.0: "Median", 100.0: "Maximum"}


def chunk_line(chunk: int, means: KLMeans) -> str:
    """The line after a chunk, counted from 1; of all tokens up to there."""
    fields = (
        _plus_minus(means.ppl, "9.4f"),
        _plus_minus(means.log_ppl_ratio, "10.5f"),
        _plus_minus(means.kld, "10.5f"),
        _percent(means.p_diff_rms, "6.3f", "6.3f"),
        _percent(means.same_top, "6.3f", "6.3f"),
    )
    return "    ".join((f"{chunk:4d}", *fields)) + "\n"


def report(summary: KLSummary) -> str:
    """All that follows the chunks' lines: an empty one alone for fewer than `LEAST_TOKENS`."""
    if summary.count < LEAST_TOKENS:
        return "\n"
    lines = (
        "",
        "====== Perplexity statistics ======",
        f"Mean PPL(Q)                   : {_plus_minus(summary.ppl, '10.6f')}",
        f"Mean PPL(base)                : {_plus_minus(summary.ppl_base, '10.6f')}",
        f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * summary.correlation:6.2f}%",
        f"Mean ln(PPL(Q)/PPL(base))     : {_plus_minus(summary.log_ppl_ratio, '10.6f')}",
        f"Mean PPL(Q)/PPL(base)         : {_plus_minus(summary.ppl_ratio, '10.6f')}",
        f"Mean PPL(Q)-PPL(base)         : {_plus_minus(summary.ppl_difference, '10.6f')}",
        "",
        "====== KL divergence statistics ======",
        f"Mean    KLD: {_plus_minus(summary.kld, '10.6f')}",
        *(f"{name} KLD: {value:10.6f}" for name, value in _named(summary.kld_percentiles)),
        "",
        "====== Token probability statistics ======",
        f"Mean    Δp: {_percent(summary.p_diff, '6.3f', '5.3f')}",
        *(f"{name} Δp: {100 * value:6.3f}%" for name, value in _named(summary.p_diff_percentiles)),
        f"RMS Δp    : {_percent(summary.p_diff_rms, '6.3f', '5.3f')}",
        f"Same top p: {_percent(summary.same_top, '6.3f', '5.3f')}",
    )
    return "\n".join(lines) + "\n"


def _plus_minus(figure: Uncertain, form: str) -> str:
    return f"{figure.value:{form}} ± {figure.error:{form}}"


def _percent(figure: Uncertain, form: str, error_form: str) -> str:
    return f"{100 * figure.value:{form}} ± {100 * figure.error:{error_form}} %"


def _named(percentiles: Mapping[float, float]) -> list[tuple[str, float]]:
    """From the maximum down, each with its name in seven columns."""
    return [
        (f"{_NAMES.get(percent, f'{percent:4.1f}%'):7}", percentiles[percent])
        for percent in sorted(percentiles, reverse=True)
    ]
