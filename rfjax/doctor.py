"""What this installation can run on, and what stands in the way, as data. Never raises.

JAX is imported inside, so that a broken installation of it is reported like anything else.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import re
from typing import TYPE_CHECKING, Any

from rfjax.errors import ConfigError
from rfjax.ops.dispatch import OPS, Choice, choose

if TYPE_CHECKING:
    from rfjax.selfcheck.checker import CheckResult

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "jaxtyping",
    "numpy",
    "gguf",
    "sentencepiece",
    "protobuf",
    "tokenizers",
    "jinja2",
    "orbax-checkpoint",
    "rich",
    "typer",
)
_PLUGIN = re.compile(r"jax[-_](rocm|cuda)\d+[-_](plugin|pjrt)$")


@dataclasses.dataclass(frozen=True)
class DeviceReport:
    """One device. Memory is in bytes; None where the device does not say."""

    id: int
    platform: str
    kind: str
    memory_free: int | None
    memory_limit: int | None


@dataclasses.dataclass(frozen=True)
class Hardware:
    """GPUs that the system shows, whether or not JAX can use them."""

    amd: bool
    nvidia: bool
    rocm: str | None  # version of the installation in /opt/rocm


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Everything that `rfjax doctor` shows.

    Attributes:
        rfjax: version of this package.
        python: version of the interpreter.
        system: operating system and processor.
        packages: version of each package that rfjax needs; None if it is not installed.
        plugins: version of each installed GPU plugin of JAX.
        hardware: GPUs that the system shows.
        devices: what JAX would run on.
        dtype: of weights and activations, unless asked otherwise; None without devices.
        cache_folder: where compiled programs are kept; None if that is off or JAX is missing.
        ops: which implementation of each operation runs, and why.
        kernels: whether kernels run on the default device.
        selfcheck: what is remembered of `rfjax selfcheck` on it.
        n_tuned: measured settings of kernels for it: shipped, and the user's own.
        problems: what keeps rfjax from running at all.
        warnings: what works worse than it could.
        hints: what else is good to know.
    """

    rfjax: str
    python: str
    system: str
    packages: dict[str, str | None]
    plugins: dict[str, str]
    hardware: Hardware
    devices: tuple[DeviceReport, ...]
    dtype: str | None
    cache_folder: str | None
    ops: tuple[Choice, ...]
    kernels: bool
    selfcheck: "tuple[CheckResult, ...]"
    n_tuned: tuple[int, int]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    hints: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether models can run here."""
        return not self.problems


def diagnose(root: pathlib.Path = pathlib.Path("/")) -> Diagnosis:
    """Look at packages, devices and settings. Starts JAX's backends.

    Args:
        root: where to look for device files and the ROCm installation.
    """
    packages = {name: _version(name) for name in _PACKAGES}
    plugins = _plugins()
    hardware = find_hardware(root)
    problems = [
        f'{name} is not installed: pip install "rfjax" again'
        for name, version in packages.items()
        if version is None
    ]
    devices, dtype, cache_folder, settings = (), None, None, _Settings()
    kernels = _Kernels()
    try:
        devices = _devices()
        dtype, cache_folder, settings = _defaults()
        kernels = _kernels()
    except ImportError as error:
        problems.append(f"JAX cannot be imported: {error}")
    except ConfigError as error:
        problems.append(str(error))
    warnings = _warnings(packages, plugins, hardware, devices, settings, root)
    warnings += [f"the kernel {name} is not used: {why}" for name, why in kernels.failing.items()]
    if cache_folder is not None and not _writable(pathlib.Path(cache_folder)):
        warnings.append(
            f"the compilation cache {cache_folder} cannot be written: every start compiles anew"
        )
    return Diagnosis(
        rfjax=_version("rfjax") or "not installed",
        python=platform.python_version(),
        system=platform.platform(),
        packages=packages,
        plugins=plugins,
        hardware=hardware,
        devices=devices,
        dtype=dtype,
        cache_folder=cache_folder,
        ops=tuple(choose(op, on_gpu=kernels.run) for op in OPS),
        kernels=kernels.run,
        selfcheck=kernels.results,
        n_tuned=kernels.n_tuned,
        problems=tuple(problems),
        warnings=tuple(warnings),
        hints=tuple(_hints(hardware, devices)),
    )


def find_devices() -> list[Any]:
    """The `jax.Device`s that models would run on.

    Raises:
        ConfigError: there are none; says what JAX says.
    """
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        # JAX asserts where a platform is asked for by name and its plugin or hardware is missing.
        asked = f"nothing for the platforms asked for, {jax.config.values['jax_platforms']!r}"
        raise ConfigError(f"JAX finds no usable device: {str(error) or asked}") from error


def find_hardware(root: pathlib.Path) -> Hardware:
    """GPUs by the files of their drivers under `root`."""
    version = root / "opt/rocm/.info/version"
    return Hardware(
        amd=(root / "dev/kfd").exists(),
        nvidia=(root / "dev/nvidiactl").exists(),
        rocm=version.read_text(errors="replace").strip() if version.is_file() else None,
    )


@dataclasses.dataclass(frozen=True)
class _Settings:
    """Settings of JAX that explain what it runs on."""

    platforms: str | None = None
    x64: bool = False


@dataclasses.dataclass(frozen=True)
class _Kernels:
    """Kernels on the default device."""

    run: bool = False
    results: "tuple[CheckResult, ...]" = ()
    failing: dict[str, str] = dataclasses.field(default_factory=dict)
    n_tuned: tuple[int, int] = (0, 0)


def _kernels() -> _Kernels:
    from rfjax.pallas.target import current_device_kind, current_target
    from rfjax.pallas.tuned_config import shipped_entries, user_entries
    from rfjax.selfcheck.guard import failing
    from rfjax.selfcheck.record import Record

    if current_target() == "interpret":
        return _Kernels()
    kind = current_device_kind()
    n_tuned = len(shipped_entries(kind)), len(user_entries(kind))
    results = tuple(Record().read().values())
    return _Kernels(True, results, failing(results), n_tuned)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plugins() -> dict[str, str]:
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and _PLUGIN.match(name):
            found[name.replace("_", "-")] = distribution.version
    return found


def _devices() -> tuple[DeviceReport, ...]:
    from rfjax.io.memory import free_bytes

    return tuple(
        DeviceReport(
            id=device.id,
            platform=device.platform,
            kind=device.device_kind,
            memory_free=free_bytes(device),
            memory_limit=(device.memory_stats() or {}).get("bytes_limit"),
        )
        for device in find_devices()
    )


def _defaults() -> tuple[str, str | None, _Settings]:
    """Default dtype, compilation cache in use, and settings of JAX."""
    import jax

    from rfjax.engine.compilation_cache import compilation_cache_folder
    from rfjax.io.load import resolve_dtype

    values = jax.config.values
    folder = compilation_cache_folder() if values["jax_enable_compilation_cache"] else None
    settings = _Settings(values["jax_platforms"] or None, values["jax_enable_x64"])
    return resolve_dtype(None), None if folder is None else str(folder), settings


def _warnings(
    packages: dict[str, str | None],
    plugins: dict[str, str],
    hardware: Hardware,
    devices: tuple[DeviceReport, ...],
    settings: _Settings,
    root: pathlib.Path,
) -> list[str]:
    found = []
    on_gpu = any(device.platform != "cpu" for device in devices)
    for present, maker, plugin, extra in (
        (hardware.amd, "AMD", "rocm", "rocm"),
        (hardware.nvidia, "NVIDIA", "cuda", "cuda"),
    ):
        if not present or on_gpu:
            continue
        if settings.platforms:
            found.append(
                f"there is an {maker} GPU, but JAX is told to use {settings.platforms!r} only "
                "(JAX_PLATFORMS)"
            )
        elif not any(plugin in name for name in plugins):
            found.append(
                f"there is an {maker} GPU, but JAX has no plugin for it: "
                f'pip install "rfjax[{extra}]"'
            )
        else:
            found.append(
                f"there is an {maker} GPU and a plugin for it, but JAX does not find the device: "
                "the driver or its version does not fit the plugin"
            )
    kfd = root / "dev/kfd"
    if hardware.amd and not os.access(kfd, os.R_OK | os.W_OK):
        found.append(f"{kfd} cannot be opened: add the user to the groups 'render' and 'video'")
    for name, version in plugins.items():
        generation = re.search(r"rocm(\d+)", name)
        if generation and hardware.rocm and hardware.rocm.split(".")[0] != generation[1]:
            found.append(f"{name} is for ROCm {generation[1]}, and {hardware.rocm} is installed")
        jax_version = packages["jax"]
        if jax_version and version.split(".")[:2] != jax_version.split(".")[:2]:
            found.append(f"{name} {version} does not fit jax {jax_version}: install equal versions")
    if settings.x64:
        found.append("JAX's 64-bit mode is on, which rfjax neither needs nor tests: turn it off")
    return list(dict.fromkeys(found))


def _hints(hardware: Hardware, devices: tuple[DeviceReport, ...]) -> list[str]:
    if any(device.platform != "cpu" for device in devices):
        return [
            "JAX reserves most of a GPU's memory when it starts; to share the GPU with other "
            "programs set XLA_PYTHON_CLIENT_PREALLOCATE=false"
        ]
    found = []
    if len(devices) > 1:
        found.append(f"the {len(devices)} CPU devices are simulated and share the same cores")
    if not (hardware.amd or hardware.nvidia):
        found.append(
            'no GPU is visible, so models run on the CPU; for GPUs: pip install "rfjax[rocm]" '
            '(AMD, beside ROCm 7) or pip install "rfjax[cuda]" (NVIDIA)'
        )
    return found


def _writable(folder: pathlib.Path) -> bool:
    """Whether a folder can be written, or made where it is missing."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
