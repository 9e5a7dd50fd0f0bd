"""`rfjax perplexity` prints llama-perplexity's numbers."""

import re
import subprocess
import sys

import pytest


def test_perplexity_of_stories260k(conformance):
    folder = conformance / "perplexity"
    model, text = folder / "stories260K.gguf", folder / "shakespeare-60k.txt"
    args = ("perplexity", model, "-f", text, "-c", "256", "--chunks", "4", "-b", "2", "-q")
    out = subprocess.check_output(
        [sys.executable, "-m", "rfjax.cli", *map(str, args)], text=True, timeout=120
    )
    running, final = out.splitlines()
    values = re.findall(r"\[(\d)\](\d+\.\d{4}),", running)
    assert [int(chunk) for chunk, _ in values] == [1, 2, 3, 4]
    found = [float(value) for _, value in values]
    assert found == pytest.approx([45.8386, 48.2457, 48.6809, 52.2548], abs=1e-3)
    assert re.fullmatch(r"Final estimate: PPL = \d+\.\d{4} \+/- \d+\.\d{5}", final)
    assert final.split()[4] == values[-1][1]
