"""The program that ISTIOD_BIN names: Istio's pilot-discovery, built elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "ISTIOD_BIN"


def binary() -> Path:
    """The program; tests that need it run only where it is (tests/support/needs.py)."""
    return Path(os.environ[VARIABLE]).resolve()
