"""What a marked test needs and this machine may not have. `tests/conftest.py` takes out of the run what is missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping


def _root() -> str | None:
    return None if os.geteuid() == 0 else "start pytest as root to run them"


def _cluster() -> str | None:
    return None if os.environ.get("KUBECONFIG") else "set KUBECONFIG to run them"


def _program(variable: str, what: str) -> str | None:
    named = os.environ.get(variable)
    if not named:
        return f"{variable} names no {what}"
    return None if os.access(named, os.X_OK) else f"{variable}={named} is not a program"


def _istiod() -> str | None:
    missing = _program("ISTIOD_BIN", "istiod (Istio's pilot-discovery, built from its source)")
    if missing is None and _cluster():
        return "KUBECONFIG names no cluster: istiod needs an API server"
    return missing


def _ztunnel() -> str | None:
    return _program("ZTUNNEL_BIN", "ztunnel binary (Istio's, built from its source)")


NEEDS: Mapping[str, Callable[[], str | None]] = {
    "root": _root,
    "kube": _cluster,
    "istiod": _istiod,
    "ztunnel": _ztunnel,
}
"""Marker -> why tests with it cannot run here, or None if they can."""
