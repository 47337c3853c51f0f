import base64
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """The factory of hand-made records."""
    path = Path(__file__).with_name("records_factory.py")
    spec = importlib.util.spec_from_file_location("records_factory", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def unpack():
    """Reads plotly's packed arrays back."""

    def read(packed: Any) -> np.ndarray:
        if not isinstance(packed, dict):
            return np.array(packed)
        flat = np.frombuffer(base64.b64decode(packed["bdata"]), dtype=packed["dtype"])
        shape = [int(n) for n in str(packed.get("shape", flat.size)).split(",")]
        return flat.reshape(shape)

    return read
