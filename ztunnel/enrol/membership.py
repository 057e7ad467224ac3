"""Which pods are to be in the mesh, by what users and others have written on them. Pure.

Source: Istio's labels and annotations, and the precedence of its CNI agent's default selectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["ENABLED", "MODE_LABEL", "PENDING", "REDIRECTION", "SIDECAR_STATUS", "asked_for"]

MODE_LABEL: Final = "istio.io/dataplane-mode"
REDIRECTION: Final = "ambient.istio.io/redirection"
"""A status, never the user's: by it control planes know that a pod takes HBONE."""
ENABLED: Final = "enabled"
PENDING: Final = "pending"
SIDECAR_STATUS: Final = "sidecar.istio.io/status"


def asked_for(
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    namespace_labels: Mapping[str, str],
    *,
    host_network: bool,
) -> bool:
    """Whether a pod is to be enrolled. Its label beats its namespace's; nothing enrols a pod on the host's network
    or one with a sidecar."""
    if host_network or SIDECAR_STATUS in annotations:
        return False
    mode = labels.get(MODE_LABEL) or namespace_labels.get(MODE_LABEL)
    return mode == "ambient"
