"""Makes the example scripts importable, and the modules beside them as when they run."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))
