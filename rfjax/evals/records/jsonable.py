"""Values of results and settings as JSON has them."""

import dataclasses
import enum
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def jsonable(value: Any) -> Any:
    """The same value made of what `json.loads` gives; every finite number keeps its bits.

    Dataclasses become objects, keys strings, tuples, sets and numpy arrays lists (sets sorted),
    numpy's numbers Python's, members of an enumeration their values. Of a path the last part is
    kept: where files lie says nothing about a result. Infinities and NaN, which JSON lacks, become
    None.

    Raises:
        TypeError: it is something else, such as a function.
    """
    if isinstance(value, enum.Enum):
        return jsonable(value.value)
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic | np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, pathlib.PurePath):
        return value.name
    if isinstance(value, Mapping):
        return {str(jsonable(key)): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, set | frozenset):
        return [jsonable(item) for item in sorted(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise TypeError(f"a {type(value).__name__} is not part of a result: {value!r}")
