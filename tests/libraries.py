"""Libraries that the project does not depend on, and that people use beside it."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest


def library(name: str) -> ModuleType:
    """Import a library, or skip the test; `make readers`, which installs all of them, sets ALL_LIBRARIES."""
    if os.environ.get("ALL_LIBRARIES"):
        return importlib.import_module(name)
    return pytest.importorskip(name)
