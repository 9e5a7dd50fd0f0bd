"""The documents: links within the tree lead somewhere, and no file names a package registry."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

_LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
_CODE = re.compile(r"^(```+|~~~+).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//")
_HEADING = re.compile(r"^#+\s+(.+?)\s*#*$", re.MULTILINE)

# Written in pieces, so that this file passes its own check.
_REGISTRIES = [
    f"{name}.{domain}"
    for name, domain in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("pypi", "nvidia.com"),
        ("anaconda", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("repo.radeon", "com"),
        ("download.pytorch", "org"),
    )
]


def files() -> list[pathlib.Path]:
    """The files of the tree: what git tracks, or everything where there is no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


def anchors(text: str) -> set[str]:
    """The fragments that a Markdown file's headings can be linked by."""
    titles = _HEADING.findall(_CODE.sub(lambda code: code[0].strip("`"), text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(path: pathlib.Path) -> list[str]:
    """Links of a Markdown file that lead to no file, or to no heading of it."""
    found = []
    for inline, reference in _LINK.findall(_CODE.sub("", path.read_text(encoding="utf-8"))):
        link = inline or reference
        if _ELSEWHERE.match(link):
            continue
        name, _, fragment = link.partition("#")
        target = path.parent / name if name else path
        whole = target.exists()
        if whole and fragment and target.suffix == ".md":
            whole = fragment in anchors(target.read_text(encoding="utf-8"))
        if not whole:
            found.append(link)
    return found


def named_registries(text: str) -> list[str]:
    """Hosts of package registries in a text."""
    return [host for host in _REGISTRIES if host in text.lower()]


def test_links_lead_somewhere():
    documents = [path for path in files() if path.suffix == ".md"]
    assert ROOT / "README.md" in documents
    broken = {str(path.relative_to(ROOT)): broken_links(path) for path in documents}
    assert not {name: links for name, links in broken.items() if links}


def test_no_file_names_a_package_registry():
    found = {}
    for path in files():
        try:
            hosts = named_registries(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue  # not text
        if hosts:
            found[str(path.relative_to(ROOT))] = hosts
    assert not found


def test_the_checks_can_fail(tmp_path):
    (tmp_path / "other.md").write_text("# A `b` heading, here\n")
    document = tmp_path / "a.md"
    document.write_text(
        "[a](other.md) [b](other.md#a-b-heading-here) [c](https://example.org/x) [d](#top)\n"
        "[e](none.md) [f](other.md#none) `[g](code.md)`\n```\n[h](code.md)\n```\n"
        "# Top\n\n[i]: missing.md\n"
    )
    assert broken_links(document) == ["none.md", "other.md#none", "missing.md"]
    assert named_registries("see https://PyPI." + "org/simple") == ["pypi." + "org"]
    assert not named_registries("python -m pip install rfjax")
