"""Who tells the agent which pods are in: a CNI agent over ZDS, or its own discovery. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

__all__ = ["SILENCE", "Chosen", "Setting", "Source", "ZdsSocket", "choose"]

SILENCE: Final = 30.0
"""Seconds for which a socket that is there may be silent: a CNI agent that is being replaced."""


class Setting(enum.StrEnum):
    """AMBIENT_ENROL."""

    AUTO = "auto"
    ZDS = "zds"
    KUBERNETES = "kubernetes"


class Source(enum.StrEnum):
    """By whom."""

    ZDS = "zds"
    KUBERNETES = "kubernetes"


class ZdsSocket(enum.Enum):
    """What is at the place of the ZDS socket."""

    ABSENT = "absent"
    SILENT = "silent"
    """It is there, and nobody takes connections."""
    ANSWERS = "answers"


@dataclass(frozen=True, slots=True)
class Chosen:
    """`why` is half a line."""

    source: Source
    why: str


def choose(setting: Setting, socket: ZdsSocket, *, in_cluster: bool, waited: float) -> Chosen | None:
    """None: not yet. `in_cluster`: the API server has told us where it is; `waited`: seconds since the first look.

    A node is served by one of the two. Where Istio's CNI agent is, it has told the agent of pods before they start,
    which own discovery cannot; so it goes first, however late it comes.
    """
    if setting is Setting.ZDS:
        return Chosen(Source.ZDS, "by setting")
    if setting is Setting.KUBERNETES:
        return Chosen(Source.KUBERNETES, "by setting")
    if not in_cluster:
        return Chosen(Source.ZDS, "not in a cluster")
    if socket is ZdsSocket.ANSWERS:
        return Chosen(Source.ZDS, "a CNI agent answers at the ZDS socket")
    if socket is ZdsSocket.ABSENT:
        return Chosen(Source.KUBERNETES, "there is no ZDS socket")
    if waited >= SILENCE:
        return Chosen(Source.KUBERNETES, f"nobody answered at the ZDS socket for {SILENCE:g} s")
    return None
