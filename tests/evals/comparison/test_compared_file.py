"""Files beside each other: the front, names, the plot and the page."""

import dataclasses
import html.parser
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfjax.errors import ConfigError
from rfjax.evals.comparison.compared_file import (
    ComparedFile,
    Rate,
    labels,
    most_exact,
    short_names,
    size_unit,
    with_front,
)
from rfjax.evals.comparison.page import comparison_page
from rfjax.evals.comparison.plot import as_bytes, draw_comparison, need_matplotlib
from rfjax.evals.kl.kl_statistics import KLStatistics


def compared(name, mib, kld, **more):
    """A file with figures drawn around a divergence."""
    rng = np.random.default_rng(len(name))
    nll = rng.exponential(2, 200).astype(np.float32)
    shift = (kld**0.5 * rng.standard_normal(200)).astype(np.float32)
    sums = KLStatistics()
    sums.add(nll + shift, nll, np.full(200, kld, np.float32), 0.1 * shift, rng.random(200) > kld)
    path = Path(f"model-{name}.gguf")
    return ComparedFile(path, name, round(mib * 2**20), mib, sums.summary(), **more)


@pytest.fixture(scope="module")
def files():
    """Sixteen, many of them near each other; the base's name is not to be trusted."""
    sizes = {
        "B<&>F16": (16070, 0),
        "Q8_0": (8540, 0.0013),
        "Q6_K": (6600, 0.0054),
        "Q5_K_M": (5730, 0.0107),
        "Q5_K_S": (5600, 0.0119),
        "Q5_0": (5600, 0.0158),
        "Q4_K_M": (4920, 0.0312),
        "Q4_K_S": (4690, 0.0363),
        "IQ4_XS": (4450, 0.0336),
        "IQ4_NL": (4680, 0.0334),
        "Q4_0": (4660, 0.0719),
        "Q4_1": (5130, 0.0578),
        "Q3_K_L": (4320, 0.0811),
        "Q3_K_M": (4020, 0.1013),
        "Q2_K": (3180, 0.445),
    }
    rates = {"prompt_rate": Rate(14000.0, 300.0), "generation_rate": Rate(71.5, 1.5)}
    return with_front(
        [compared(name, mib, kld, is_base=kld == 0, **rates) for name, (mib, kld) in sizes.items()]
    )


@pytest.fixture(scope="module")
def figure(files):
    return draw_comparison(files, "A & B")


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=8))
def test_the_front_is_what_nothing_beats(costs):
    told = with_front([compared(f"{i}", mib, kld / 10) for i, (mib, kld) in enumerate(costs)])
    assert told == sorted(told, key=lambda file: (file.nbytes, file.summary.kld.value))
    for file in told:
        size, kld = costs[int(file.name)]
        beaten = any(s <= size and d <= kld and (s, d) != (size, kld) for s, d in costs)
        assert file.on_front is not beaten
    front = [file for file in told if file.on_front]
    for before, after in itertools.pairwise(front):
        assert before.summary.kld.value >= after.summary.kld.value


def test_the_most_exact_file_has_most_bits_a_weight():
    paths = [Path(name) for name in "abc"]
    assert most_exact(paths, [4.5, 16.0, 8.5], [9, 5, 7]) == Path("b")
    assert most_exact(paths, [16.0, 16.0, 8.5], [5, 9, 7]) == Path("b")
    assert most_exact(paths, [16.0, 16.0, 16.0], [5, 5, 5]) == Path("a")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["L-3.1-8B-Q4_K_M.gguf", "L-3.1-8B-Q4_K_S.gguf"], ["Q4_K_M", "Q4_K_S"]),
        (["stories.gguf", "stories-Q4_0.gguf"], ["stories", "Q4_0"]),
        (["one.gguf"], ["one"]),
        (["a/m-Q4_0.gguf", "b/m-Q4_0.gguf"], ["a/m-Q4_0.gguf", "b/m-Q4_0.gguf"]),
        (["model.Q8_0.gguf", "model.F16.gguf"], ["Q8_0", "F16"]),
    ],
)
def test_names_are_what_tells_files_apart(names, expected):
    assert short_names([Path(name) for name in names]) == expected


def test_endings_that_all_share_go_too_and_the_base_has_no_say():
    names = ["other-F16.gguf", "L-3.1-8B-Q4_K_M-imat.gguf", "L-3.1-8B-Q4_K_S-imat.gguf"]
    paths = [Path(name) for name in names]
    assert short_names(paths, paths[0]) == ["other-F16", "Q4_K_M", "Q4_K_S"]
    same = [Path("x/y/a/m.gguf"), Path("x/y/b/m.gguf")]
    assert short_names(same) == ["a/m.gguf", "b/m.gguf"]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.text("ab-.", min_size=1, max_size=8), min_size=1, max_size=6, unique=True))
def test_names_stay_different(stems):
    paths = [Path(f"m{stem}.gguf") for stem in stems]
    for base in (None, paths[0]):
        names = short_names(paths, base)
        assert len(set(names)) == len(names) and all(names)
    for label in labels([path.stem for path in paths], 6):
        assert len(label) <= 6
    assert len(set(labels([path.stem for path in paths], 6))) == len(paths)


def test_sizes_have_a_unit_of_which_every_file_has_one():
    for nbytes, expected in ((5 << 30, "GiB"), (1 << 20, "MiB"), (900 << 10, "KiB")):
        file = dataclasses.replace(compared("m", 1, 0), nbytes=nbytes)
        assert size_unit([file, dataclasses.replace(file, nbytes=10 << 30)])[1] == expected


def check_labels(figure, files):
    """No label covers another, and all are inside."""
    large = figure.axes[0]
    figure.draw_without_rendering()
    shown = [text for text in large.texts if text.get_text()]
    assert len(shown) == len(files)
    from matplotlib.text import Text

    boxes = [Text.get_window_extent(text) for text in shown]
    frame = large.get_window_extent()
    for box, other in itertools.combinations(boxes, 2):
        assert not box.overlaps(other)
    for box in boxes:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1


def test_no_label_covers_another(files, figure):
    check_labels(figure, files)


def test_long_names_leave_room(tmp_path):
    """Dollars are dollars; and what matplotlib warns of, as a layout without room, is an error."""
    stems = [f"{'a-long-name-of-a-model' * 3}-$x^{i}$-{'and-more' * i}" for i in range(8)]
    names = short_names([Path("base-of-another-beginning" * 3), *map(Path, stems)])
    rates = {"prompt_rate": Rate(14000.0, 300.0), "generation_rate": Rate(71.5, 1.5)}
    told = [compared(names[0], 160, 0, is_base=True, **rates)]
    told += [
        compared(name.ljust(80, "z"), 40 + 3 * i, 0.1 / (i + 1), **rates)
        for i, name in enumerate(names[1:])
    ]
    told = with_front(told)
    figure = draw_comparison(told, f"$a$ {'and others ' * 20} $")
    check_labels(figure, told)
    assert as_bytes(figure, "png").startswith(b"\x89PNG")
    assert as_bytes(figure, "svg").startswith(b"<?xml")
    for axes in figure.axes:
        assert axes.get_window_extent().width > 100
    assert figure.get_suptitle().startswith("$a$ and") and len(figure.get_suptitle()) == 120


def test_a_base_alone_has_its_label_to_itself():
    figure = draw_comparison([compared("m" * 80, 10, 0, is_base=True)], "title")
    large = figure.axes[0]
    assert large.get_title() == "nothing differs from the base"
    assert len([text for text in large.texts if text.get_text()]) == 1


def test_the_picture_is_the_same_every_time(files):
    pictures = {as_bytes(draw_comparison(files[-3:], "title"), "svg") for _ in range(2)}
    assert len(pictures) == 1
    assert as_bytes(draw_comparison(files[-3:], "title"), "png").startswith(b"\x89PNG")


@pytest.mark.parametrize("kept", [1, 2])
def test_few_files_without_speeds_are_drawn_too(files, kept):
    plain = [
        dataclasses.replace(file, prompt_rate=None, generation_rate=None) for file in files[-kept:]
    ]
    figure = draw_comparison(plain, "title")
    assert len(figure.axes) == 2


class _Page(html.parser.HTMLParser):
    """Rows of cells, values to sort by, and what is fetched from elsewhere."""

    def __init__(self):
        super().__init__()
        self.rows, self.values, self.fetched, self._in_cell = [], [], [], False

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "tr":
            self.rows.append([])
            self.values.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.values[-1].append(given.get("data-value"))
            self._in_cell = True
        fetched = [given[name] for name in ("src", "href", "xlink:href") if name in given]
        self.fetched += [link for link in fetched if not link.startswith("#")]

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data


def test_the_page_has_everything_in_it(files, figure):
    svg = as_bytes(figure, "svg")
    text = comparison_page(files, "A & B", "measured <somehow>", svg)
    page = _Page()
    page.feed(text)
    header, *rows = page.rows
    assert len(rows) == len(files) and {len(row) for row in rows} == {len(header)}
    assert [row[0].removesuffix(" (base)") for row in rows] == [file.name for file in files]
    for values, file in zip(page.values[1:], files, strict=True):
        assert float(values[header.index("KLD")]) == file.summary.kld.value
        assert float(values[header.index("generation, tokens/s")]) == 71.5
        assert values[header.index("front")] == str(int(file.on_front))
    assert not page.fetched and "url(http" not in text and "@import" not in text
    assert "measured &lt;somehow&gt;" in text and "<title>A &amp; B</title>" in text
    assert not re.search(r"\$\w", re.sub(r"<svg.*</svg>", "", text, flags=re.DOTALL))


def test_without_matplotlib_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install \"rfjax\[eval\]\""):
        need_matplotlib()
