"""The program that ZTUNNEL_BIN names: Istio's ztunnel, built elsewhere."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

VARIABLE = "ZTUNNEL_BIN"


def missing() -> str | None:
    """Why these tests cannot run here, or None."""
    named = os.environ.get(VARIABLE)
    if not named:
        return f"{VARIABLE} names no ztunnel binary (Istio's, built from its source)"
    if not os.access(named, os.X_OK):
        return f"{VARIABLE}={named} is not a program"
    return None


def binary() -> Path:
    """The program; only called where `missing` found nothing to complain about."""
    return Path(os.environ[VARIABLE]).resolve()


@functools.cache
def version() -> str:
    """Revision, TLS library and build profile, as the program says them."""
    said = subprocess.run([binary(), "version"], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r'(\w+):"([^"]*)"', said))
    return f"{found['GitRevision'][:12]} {found['CryptoProvider']} {found['BuildProfile']}"
