"""Settings as frozen dataclasses, filled from defaults, then a TOML file, then flags.

Generic on purpose: the engine, the evaluations and the command line each declare a frozen
dataclass that checks its own ranges in `__post_init__`, and one dataclass holding others describes
a whole preset file, one table per nested dataclass. This module adds what is common to all of
them: types checked against the annotations, unknown keys refused with a suggestion, and messages
that name the file and the key. It imports no JAX.
"""

import dataclasses
import difflib
import pathlib
import tomllib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from rfjax.errors import ConfigError, RequestError

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def from_mapping(cls: type[T], values: Mapping[str, Any], *, source: str = "settings") -> T:
    """Builds the dataclass `cls` from plain values.

    Args:
      cls: a dataclass whose fields are annotated with bool, int, float, str, `pathlib.Path`,
        `Literal`, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]`, other such dataclasses, and
        unions of these with None.
      values: field name to value, as TOML gives them: lists stand for tuples, tables for nested
        dataclasses, strings for paths, and an integer may stand for a float.
      source: where the values come from, for messages.

    Raises:
      ConfigError: an unknown or missing key, or a value of the wrong type.
      ConfigError, RequestError: a value that the dataclass's own `__post_init__` refuses; its
        message behind the place.
    """
    return _build(cls, _checked(cls, values, source), source)


def from_toml(
    cls: type[T],
    path: str | pathlib.Path | None,
    overrides: Mapping[str, Any] | None = None,
) -> T:
    """Builds the dataclass `cls` from its defaults, a TOML file and flags, the later ones winning.

    Args:
      cls: the dataclass, as in `from_mapping`.
      path: the TOML file; None for none.
      overrides: values that win over the file's, nested like it. A None means "flag not given"
        and changes nothing.

    Raises:
      ConfigError: the file cannot be read or is not TOML, or as in `from_mapping`.
    """
    source = "settings" if path is None else str(path)
    file = {} if path is None else _checked(cls, _read(pathlib.Path(path)), source)
    flags = _checked(cls, _given(overrides or {}), "flags")
    return _build(cls, _merged(file, flags), f"{source} with flags" if flags else source)


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); expected a TOML file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given, without tables that hold none."""
    given = {}
    for key, value in flags.items():
        kept = _given(value) if isinstance(value, Mapping) else value
        if kept is not None and kept != {}:
            given[key] = kept
    return given


class _Table(dict[str, Any]):
    """Checked values of one nested dataclass, still to be merged and built."""


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> _Table:
    merged = _Table(low)
    for key, value in high.items():
        below = merged.get(key)
        if isinstance(below, _Table) and isinstance(value, _Table):
            merged[key] = _merged(below, value)
        else:
            merged[key] = value
    return merged


def _checked(cls: type, values: Mapping[str, Any], where: str) -> _Table:
    """The values with their types checked and converted; nested tables not built yet."""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    checked = _Table()
    for key, value in values.items():
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(names)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
        checked[key] = _convert(hints[key], value, f"{where}: {key}")
    return checked


def _build(cls: type[T], table: _Table, where: str) -> T:
    hints = typing.get_type_hints(cls)
    values = {
        key: _build(_dataclass_of(hints[key]), value, f"{where}: {key}")
        if isinstance(value, _Table)
        else value
        for key, value in table.items()
    }
    missing = [
        field.name
        for field in dataclasses.fields(cls)
        if field.init
        and field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(missing)}; each needs a value")
    try:
        return cls(**values)
    except (ConfigError, RequestError) as error:
        raise type(error)(f"{where}: {error}") from error


def _dataclass_of(hint: Any) -> Any:
    """The dataclass that a field's annotation names, alone or in a union with None; else None."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((member for member in members if dataclasses.is_dataclass(member)), None)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """The value as the annotation wants it, or a ConfigError that says what was expected."""
    origin, args = get_origin(hint), get_args(hint)
    nested = _dataclass_of(hint)
    if nested is not None and isinstance(value, Mapping):
        return _checked(nested, value, where)
    if origin in (Union, types.UnionType):
        for member in args:
            try:
                return _convert(member, value, where)
            except ConfigError:
                continue  # the error below names every member
    elif origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in args):
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = (args[0],) * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            return tuple(
                _convert(kind, item, f"{where}[{i}]")
                for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
            )
    elif origin is dict and isinstance(value, Mapping):
        return {str(key): _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    elif hint is pathlib.Path and isinstance(value, str | pathlib.Path):
        return pathlib.Path(value)
    elif hint is float and type(value) is int:
        return float(value)
    elif type(value) is hint:  # exact, so that a bool never passes for an int
        return value
    raise ConfigError(f"{where}: got {value!r} ({type(value).__name__}), expected {_words(hint)}")


def _words(hint: Any) -> str:
    """An annotation as a person would say it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(member) for member in args)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in args)
    if origin is tuple:
        many = args[-1] is Ellipsis
        return f"a list of {_words(args[0])}" if many else f"a list of {len(args)} values"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a table"
    return "None" if hint is types.NoneType else getattr(hint, "__name__", str(hint))
