"""The host's processor by name."""

import pathlib
import platform

_CPU_INFO = pathlib.Path("/proc/cpuinfo")


def processor_name(path: pathlib.Path = _CPU_INFO) -> str:
    """What Linux says of the first processor (in `path`), elsewhere what Python knows of it."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
