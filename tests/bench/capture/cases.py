"""The rows of group `capture`."""

from __future__ import annotations

from tests.bench.cases import Case, rate
from tests.bench.results import Row, Sample
from tests.bench.testbed import Rig

CAPTURE, DIRECT, TURBO = "capture-", "same-node-direct-", "same-node-turbo-"


def dials(name: str) -> Case:
    """Blocking connections one by one, each with a 64-byte round trip; the latency is that of connect()."""
    return rate(name, "connection", ("dials", "--size", "64"), settle=False, repeats=True)


def connections(name: str) -> Case:
    """New connections, 16 at once, one 64-byte round trip each."""
    return rate(name, "connection", ("conns", "--conns", "16", "--size", "64"), settle=True, repeats=True)


def exchange(name: str, conns: int) -> Case:
    """64-byte request-response over `conns` connections."""
    return rate(name, "request", ("rr", "--conns", str(conns), "--size", "64"), settle=False)


def stream(name: str, size: int) -> Case:
    """One connection, written `size` bytes at a time; both ends copy."""
    row = Row(name, "Gbit/s", "higher", "GB")

    def measure(rig: Rig, seconds: float) -> dict[str, Sample]:
        options = ("--conns", "1", "--seconds", str(seconds), "--writes", str(size), "up")
        got, cost = rig.measured("bulk", *options)
        cpu = cost.proxy_cpu_s / (got["bytes"] / 1e9) if rig.proxies else None
        return {name: Sample(got["gbit_s"], cpu, foreign_cpu=cost.foreign_cpu)}

    return Case((row,), measure)


def _same_node(prefix: str) -> list[Case]:
    return [
        exchange(f"{prefix}rr-1", 1),
        exchange(f"{prefix}rr-64", 64),
        exchange(f"{prefix}rr-256", 256),
        stream(f"{prefix}stream-1k", 1024),
        stream(f"{prefix}stream-64k", 65536),
        connections(f"{prefix}conn"),
    ]


def capture_cases() -> list[Case]:
    """All rows, in the order of the table."""
    capturing = [
        dials(f"{CAPTURE}connect"),
        exchange(f"{CAPTURE}rr-1", 1),
        exchange(f"{CAPTURE}rr-64", 64),
    ]
    return [*capturing, *_same_node(DIRECT), *_same_node(TURBO)]
