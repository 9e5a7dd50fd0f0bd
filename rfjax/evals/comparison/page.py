"""A comparison of files as one HTML page that needs nothing else: a figure and a sortable table."""

import html
import string
from collections.abc import Sequence

from rfjax.evals.comparison.compared_file import ComparedFile, Rate, size_unit
from rfjax.evals.kl.kl_statistics import Uncertain

_HEADERS = (
    ("file", "name of the file"),
    ("size", "of the file, all parts"),
    ("bits/weight", "mean over all tensors"),
    ("PPL", "perplexity and its standard error"),
    ("PPL above base, %", "relative to the base's; its error is that of the ratio"),
    ("KLD", "mean KL divergence from the base, nats per token"),
    ("KLD 99%", "of 99 in 100 tokens it is lower"),
    ("same top, %", "tokens where both find the same token most likely"),
    ("prompt, tokens/s", "of one prompt"),
    ("generation, tokens/s", "of one sequence"),
    ("front", "no other file is at most as large and at most as far from the base"),
)

_PAGE = string.Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem;
  color: #222; background: #fff; }
h1 { font-size: 1.3rem; }
svg { width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { white-space: normal; vertical-align: bottom; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: 0; text-align: inherit; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
tr.front td { color: #0b6e4f; }
tr.base td { color: #2b4c7e; }
.error { color: #777; font-size: .85em; }
</style>
</head>
<body>
<h1>$title</h1>
$figure
<table>
<thead><tr>
$headers
</tr></thead>
<tbody>
$rows
</tbody>
</table>
<p>$notes</p>
<script>
for (const head of document.querySelectorAll("th")) {
  head.querySelector("button").addEventListener("click", () => {
    const up = head.ariaSort !== "ascending";
    for (const other of head.parentNode.children) other.ariaSort = null;
    head.ariaSort = up ? "ascending" : "descending";
    const body = document.querySelector("tbody"), i = head.cellIndex;
    const value = (row) => row.cells[i].dataset.value;
    const compare = (a, b) => i === 0 ? a.localeCompare(b) : a - b;
    const known = [...body.rows].filter((row) => value(row) !== "");
    const unknown = [...body.rows].filter((row) => value(row) === "");
    known.sort((a, b) => (up ? 1 : -1) * compare(value(a), value(b)));
    body.append(...known, ...unknown);
  });
}
</script>
</body>
</html>
""")


def comparison_page(files: Sequence[ComparedFile], title: str, notes: str, figure: bytes) -> str:
    """The page.

    Args:
        files: of `rfjax.evals.comparison.compared_file.with_front`.
        title: what was measured, in a line.
        notes: how, in a few sentences.
        figure: the plot as SVG.
    """
    svg = figure.decode()
    unit, letters = size_unit(files)
    return _PAGE.substitute(
        title=html.escape(title),
        notes=html.escape(notes),
        figure=svg[svg.index("<svg") :].strip(),
        headers="\n".join(
            f'<th scope="col" title="{html.escape(hint)}"><button>'
            f"{html.escape(f'{name}, {letters}' if name == 'size' else name)}</button></th>"
            for name, hint in _HEADERS
        ),
        rows="\n".join(_row(file, unit) for file in files),
    )


def _row(file: ComparedFile, unit: int) -> str:
    summary = file.summary
    ratio = Uncertain(100 * (summary.ppl_ratio.value - 1), 100 * summary.ppl_ratio.error)
    same = Uncertain(100 * summary.same_top.value, 100 * summary.same_top.error)
    name = f"{file.name} (base)" if file.is_base else file.name
    kind = "base" if file.is_base else "front" if file.on_front else "other"
    cells = (
        _cell(file.name, html.escape(name)),
        _number(file.nbytes / unit, ".2f"),
        _number(file.bits_per_weight, ".2f"),
        _uncertain(summary.ppl, ".4f"),
        _uncertain(ratio, "+.2f"),
        _uncertain(summary.kld, ".6f"),
        _number(summary.kld_percentiles[99.0], ".6f"),
        _uncertain(same, ".2f"),
        _rate(file.prompt_rate),
        _rate(file.generation_rate),
        _cell(int(file.on_front), "yes" if file.on_front else ""),
    )
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def _cell(value: object, shown: str) -> str:
    return f'<td data-value="{html.escape(str(value))}">{shown}</td>'


def _number(value: float, form: str) -> str:
    return _cell(value, format(value, form))


def _uncertain(figure: Uncertain, form: str) -> str:
    error = format(figure.error, form.replace("+", ""))
    shown = f'{figure.value:{form}} <span class="error">± {error}</span>'
    return _cell(figure.value, shown)


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return _cell("", "")
    return _cell(rate.mean, f'{rate.mean:.1f} <span class="error">± {rate.deviation:.1f}</span>')
