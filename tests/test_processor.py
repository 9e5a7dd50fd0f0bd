"""The processor's name, with and without a system that tells it."""

from rfjax.processor import processor_name


def test_with_and_without_a_name(tmp_path):
    assert processor_name()
    assert processor_name(tmp_path / "none")
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: Some Processor\nmodel name\t: Another\n")
    assert processor_name(path) == "Some Processor"
