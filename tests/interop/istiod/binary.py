"""The program that ISTIOD_BIN names: Istio's pilot-discovery, built elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "ISTIOD_BIN"


def missing() -> str | None:
    """Why these tests cannot run here, or None."""
    named = os.environ.get(VARIABLE)
    if not named:
        return f"{VARIABLE} names no istiod (Istio's pilot-discovery, built from its source)"
    if not os.access(named, os.X_OK):
        return f"{VARIABLE}={named} is not a program"
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster: istiod needs an API server"
    return None


def binary() -> Path:
    """The program; only called where `missing` found nothing to complain about."""
    return Path(os.environ[VARIABLE]).resolve()
