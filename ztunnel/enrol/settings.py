"""What a pod's annotations ask of its capture. Pure.

A value that cannot be read counts as not given, so that the pod stays captured as a whole: leaving out what
somebody meant to leave out may break a connection, and is seen; capturing less than they meant is not.

Source: Istio's annotation reference. In Istio's ambient mode the port lists have no effect; here they have
the meaning that Istio gives them with sidecars.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = [
    "ACCELERATE",
    "BYPASS_INBOUND",
    "DNS_CAPTURE",
    "EXCLUDE_INBOUND",
    "EXCLUDE_OUTBOUND",
    "INCLUDE_INBOUND",
    "INCLUDE_OUTBOUND",
    "MAX_PORTS",
    "CaptureSettings",
    "Problem",
    "read",
]

ACCELERATE: Final = "ambientlite.io/same-node-acceleration"
BYPASS_INBOUND: Final = "ambient.istio.io/bypass-inbound-capture"
DNS_CAPTURE: Final = "ambient.istio.io/dns-capture"
EXCLUDE_INBOUND: Final = "traffic.sidecar.istio.io/excludeInboundPorts"
EXCLUDE_OUTBOUND: Final = "traffic.sidecar.istio.io/excludeOutboundPorts"
INCLUDE_INBOUND: Final = "traffic.sidecar.istio.io/includeInboundPorts"
INCLUDE_OUTBOUND: Final = "traffic.sidecar.istio.io/includeOutboundPorts"

MAX_PORTS: Final = 32
"""Ports in one list: the message that tells the agent of a pod has 1,024 bytes (ZDS)."""

_HBONE: Final = 15008
_ALL: Final = "*"
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """One pod's own settings; empty: everything is captured.

    `include_inbound`: if not None, the only plaintext inbound ports that are captured. `dns_capture`: None
    where the pod leaves it to the node's default. `accelerate`: direct connections with other such pods of the node go
    from socket to socket (docs/direct-path.md).
    """

    exclude_inbound: frozenset[int] = frozenset()
    exclude_outbound: frozenset[int] = frozenset()
    include_inbound: frozenset[int] | None = None
    bypass_inbound: bool = False
    dns_capture: bool | None = None
    accelerate: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """An annotation that does not do what it says; `text` is one line."""

    annotation: str
    text: str

    def __str__(self) -> str:
        return f"annotation {self.annotation}: {self.text}"


def read(annotations: Mapping[str, str]) -> tuple[CaptureSettings, tuple[Problem, ...]]:
    """What the annotations ask for, and what is wrong with them."""
    reader = _Reader(annotations)
    bypass = reader.flag(BYPASS_INBOUND)
    dns = reader.flag(DNS_CAPTURE)
    excluded = reader.ports(EXCLUDE_INBOUND) or frozenset()
    included = reader.ports(INCLUDE_INBOUND, all_by_default=True)
    if _HBONE in excluded:
        reader.complain(EXCLUDE_INBOUND, f"port {_HBONE} is the mesh's own and stays captured")
    if included is not None and excluded:
        reader.complain(EXCLUDE_INBOUND, f"without effect, since {INCLUDE_INBOUND} lists ports")
        excluded = frozenset()
    if annotations.get(INCLUDE_OUTBOUND, "").strip() not in ("", _ALL):
        reader.complain(
            INCLUDE_OUTBOUND, "without effect: every outbound port is captured that is not excluded"
        )
    settings = CaptureSettings(
        excluded - {_HBONE},
        reader.ports(EXCLUDE_OUTBOUND) or frozenset(),
        included,
        bool(bypass),
        dns,
        bool(reader.flag(ACCELERATE)),
    )
    return settings, tuple(reader.problems)


class _Reader:
    def __init__(self, annotations: Mapping[str, str]) -> None:
        self._annotations = annotations
        self.problems: list[Problem] = []

    def complain(self, name: str, text: str) -> None:
        self.problems.append(Problem(name, text))

    def flag(self, name: str) -> bool | None:
        text = self._annotations.get(name)
        if text is None or text in _FALSE or text in _TRUE:
            return None if text is None else text in _TRUE
        self.complain(name, f"must be true or false, not {_quoted(text)}; ignored")
        return None

    def ports(self, name: str, *, all_by_default: bool = False) -> frozenset[int] | None:
        """None: not given, or "*" where that is the default."""
        text = self._annotations.get(name)
        if text is None or (all_by_default and text.strip() == _ALL):
            return None
        try:
            return _ports(text)
        except ValueError as error:
            kept = "every port stays captured" if name != EXCLUDE_OUTBOUND else "no port is excluded"
            self.complain(name, f"{error}; the whole list is ignored, {kept}")
            return None


def _ports(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        if not (part.isascii() and part.isdigit() and len(part) <= 5 and 0 < int(part) < 65536):
            raise ValueError(f"{_quoted(part)} is not a port from 1 to 65535")
        found.add(int(part))
    if len(found) > MAX_PORTS:
        raise ValueError(f"{len(found)} ports are more than {MAX_PORTS}")
    return frozenset(found)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
