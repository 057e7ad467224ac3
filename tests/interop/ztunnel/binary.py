"""The program that ZTUNNEL_BIN names: Istio's ztunnel, built elsewhere."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

VARIABLE = "ZTUNNEL_BIN"


def binary() -> Path:
    """The program; tests that need it run only where it is (tests/support/needs.py)."""
    return Path(os.environ[VARIABLE]).resolve()


@functools.cache
def version() -> str:
    """Revision, TLS library and build profile, as the program says them."""
    said = subprocess.run([binary(), "version"], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r'(\w+):"([^"]*)"', said))
    return f"{found['GitRevision'][:12]} {found['CryptoProvider']} {found['BuildProfile']}"
