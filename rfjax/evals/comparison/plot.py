"""A comparison of files as a figure: quality, size and speed, drawn by matplotlib in memory."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rfjax.errors import ConfigError
from rfjax.evals.comparison.compared_file import (
    ComparedFile,
    Rate,
    labels,
    shortened,
    size_unit,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FRONT, _OTHER, _BASE = "#0b6e4f", "#9a9a9a", "#2b4c7e"
_STYLE = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "svg.hashsalt": "rfjax",
    "text.parse_math": False,  # names of files, in which a dollar is a dollar
}
_LONGEST_NAME, _LONGEST_TITLE = 24, 120
"""Characters that there is room for."""

_AWAY = (8, 20, 34, 50, 75, 105, 140)
_SIDES = ((1, 0.7), (1, -0.7), (-1, 0.7), (-1, -0.7), (0, 1.2), (0, -1.2))
"""Where a label may stand beside its point, the best first: points away, in these directions."""

_LOGARITHMIC_FROM = 3.0
"""Sizes that are so many times apart get a logarithmic axis."""


def draw_comparison(files: Sequence[ComparedFile], title: str) -> Figure:
    """The figure.

    Large: divergence from the base over size, with the front. Small: perplexity relative to the
    base's with its error, and tokens a second where they were measured.

    Args:
        files: of `rfjax.evals.comparison.compared_file.with_front`, the base among them.
        title: what was measured, in a line. Long ones, and long names, lose their middle here.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    matplotlib = need_matplotlib()
    names = labels([file.name for file in files], _LONGEST_NAME)
    files = [dataclasses.replace(f, name=name) for f, name in zip(files, names, strict=True)]
    with matplotlib.rc_context(_STYLE):
        figure = _new_figure()
        timed = all(f.prompt_rate and f.generation_rate for f in files)
        grid = figure.add_gridspec(2, 4 if timed else 3, height_ratios=(1, 1))
        unit, letters = size_unit(files)
        large = figure.add_subplot(grid[:, :2])
        _draw_divergence(large, files, unit, letters)
        _draw_perplexity(figure.add_subplot(grid[0 if timed else slice(None), 2:]), files)
        if timed:
            rates = [f.generation_rate for f in files]
            _draw_rates(figure.add_subplot(grid[1, 2]), files, rates, "generation", names=True)
            rates = [f.prompt_rate for f in files]
            _draw_rates(figure.add_subplot(grid[1, 3]), files, rates, "prompt", names=False)
        figure.suptitle(shortened(title, _LONGEST_TITLE), fontsize=11)
        _label(figure, large, files, unit)
    return figure


def as_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a file of that kind, "png" or "svg"; the same for the same figures."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with need_matplotlib().rc_context(_STYLE):
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def need_matplotlib() -> Any:
    """The package, so that a lack of it is told before anything is computed.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "drawing needs matplotlib, which is not installed: install it with "
            '`pip install "rfjax[eval]"`, or leave out --png and --html'
        ) from error
    return matplotlib


def _new_figure() -> Figure:
    """Drawn in memory: no window system, and nothing of pyplot's state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _colour(file: ComparedFile) -> str:
    if file.is_base:
        return _BASE
    return _FRONT if file.on_front else _OTHER


def _draw_divergence(axes: Axes, files: Sequence[ComparedFile], unit: int, letters: str) -> None:
    sizes = [file.nbytes / unit for file in files]
    axes.set_xlabel(f"file size, {letters}")
    axes.set_ylabel("mean KL divergence from the base, nats per token")
    if max(sizes) >= _LOGARITHMIC_FROM * min(sizes):
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis, (1.5, 2, 3, 4, 5, 7))
    for file in files:
        if file.is_base:
            axes.axvline(file.nbytes / unit, color=_BASE, linestyle=":", linewidth=1.2)
            axes.annotate(
                f"{file.name} (base)",
                (file.nbytes / unit, 0.5),
                xycoords=("data", "axes fraction"),
                xytext=(-4, 0),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="center",
                color=_BASE,
            )
    shown = [f for f in files if not f.is_base and f.summary.kld.value > 0]
    if not shown:
        axes.set_title("nothing differs from the base", fontsize=9)
        return
    axes.set_yscale("log")
    distances = [file.summary.kld.value for file in shown]
    _plain_ticks(axes.yaxis, (2, 5) if max(distances) < 100 * min(distances) else ())
    front = [f for f in shown if f.on_front]
    if len(front) > 1:
        x, y = [f.nbytes / unit for f in front], [f.summary.kld.value for f in front]
        axes.step(x, y, where="post", color=_FRONT, linewidth=1.2, alpha=0.6, label="front")
    for file in shown:
        kld = file.summary.kld
        axes.errorbar(
            file.nbytes / unit,
            kld.value,
            yerr=min(kld.error, 0.99 * kld.value),
            fmt="o",
            markersize=7,
            color=_colour(file),
            capsize=2,
        )
    axes.margins(x=0.08)
    axes.set_ylim(min(distances) / 1.8, max(distances) * 1.8)
    axes.set_title(
        "lower left is better; green: no other is at most as large and as far", fontsize=9
    )


def _draw_perplexity(axes: Axes, files: Sequence[ComparedFile]) -> None:
    """Relative to the base's: errors of the two go together, so that this is known better."""
    places = range(len(files))
    for place, file in zip(places, files, strict=True):
        ratio = file.summary.ppl_ratio
        axes.errorbar(
            100 * (ratio.value - 1),
            place,
            xerr=100 * ratio.error,
            fmt="o",
            markersize=6,
            capsize=3,
            color=_colour(file),
        )
    axes.axvline(0, color=_BASE, linestyle=":", linewidth=1.2)
    axes.set_yticks(list(places), [file.name for file in files], fontsize=_row_size(files))
    axes.set_ylim(-0.6, len(files) - 0.4)
    base = next(f for f in files if f.is_base)
    axes.set_xlabel(f"perplexity above the base's {base.summary.ppl.value:.4g}, %")


def _draw_rates(
    axes: Axes,
    files: Sequence[ComparedFile],
    rates: Sequence[Rate | None],
    what: str,
    *,
    names: bool,
) -> None:
    known = [rate for rate in rates if rate is not None]
    places = list(range(len(files)))
    axes.barh(
        places,
        [rate.mean for rate in known],
        xerr=[rate.deviation for rate in known],
        color=[_colour(file) for file in files],
        height=0.7,
        alpha=0.85,
        error_kw={"elinewidth": 1, "capsize": 2},
    )
    most = max(rate.mean + rate.deviation for rate in known)
    for place, rate in zip(places, known, strict=True):
        axes.annotate(
            _short(rate.mean),
            (rate.mean + rate.deviation, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=min(8, _row_size(files)),
        )
    axes.set_xlim(0, 1.28 * most)
    labels = [file.name if names else "" for file in files]
    axes.set_yticks(places, labels, fontsize=_row_size(files))
    axes.set_ylim(-0.6, len(files) - 0.4)
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(_short_numbers())
    axes.set_xlabel(f"{what}, tokens/s")
    axes.grid(axis="y", visible=False)


def _row_size(files: Sequence[ComparedFile]) -> float:
    """Size of text of which a row each has room."""
    return max(4.0, min(10.0, 135 / len(files)))


def _short(value: float) -> str:
    if value >= 9999.5:
        return f"{value / 1000:.3g}k"
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def _short_numbers() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, position: _short(value) if value else "0")


def _plain_ticks(axis: Any, between: Sequence[float]) -> None:
    """Numbers as people write them on a logarithmic axis, at powers of ten and in between."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    plain = FuncFormatter(lambda value, position: f"{value:g}")
    axis.set_major_formatter(plain)
    if between:
        axis.set_minor_locator(LogLocator(subs=between))
        axis.set_minor_formatter(plain)


def _label(figure: Figure, axes: Axes, files: Sequence[ComparedFile], unit: int) -> None:
    """Names beside points, each where it covers least of other names, points and the frame."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # positions are known once the layout is
    frame = axes.get_window_extent()
    points = [(f.nbytes / unit, f.summary.kld.value) for f in files]
    taken = [text.get_window_extent() for text in axes.texts]
    for point in points:
        x, y = axes.transData.transform(point)
        taken.append(Bbox.from_bounds(x - 9, y - 9, 18, 18))

    def covered(box: Bbox) -> float:
        shared = (Bbox.intersection(box, other) for other in taken)
        inside = Bbox.intersection(box, frame)
        outside = box.width * box.height - (inside.width * inside.height if inside else 0.0)
        return sum(part.width * part.height for part in shared if part) + 2 * outside

    for file, point in zip(files, points, strict=True):
        if file.is_base or not file.summary.kld.value > 0:
            continue
        best: tuple[float, Text, Bbox] | None = None
        for away, (right, up) in itertools.product(_AWAY, _SIDES):
            text = axes.annotate(
                file.name,
                point,
                (away * right, away * up),
                textcoords="offset points",
                ha={1: "left", 0: "center", -1: "right"}[right],
                va="bottom" if up > 0 else "top",
                color=_colour(file),
                arrowprops={
                    "arrowstyle": "-",
                    "color": _colour(file),
                    "linewidth": 0.5,
                    "shrinkA": 0,
                    "shrinkB": 3,
                },
            )
            text.get_window_extent()  # places it; what it returns has the line in it
            box = Text.get_window_extent(text)
            cost = covered(box)
            if best is not None and cost >= best[0]:
                text.remove()
                continue
            if best is not None:
                best[1].remove()
            best = cost, text, box
            if cost == 0:
                break
        if best is not None:
            taken.append(best[2])
