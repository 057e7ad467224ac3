"""A peer behind a network that swallows everything, without a word: two namespaces, a wire, and a route into nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from hbone.engine import ListenerKind
from tests.support.ports import address, listening_socket
from tests.unit.engine.conftest import Mesh, exchange, expect_reset
from tests.unit.engine.test_netns import inside

pytestmark = pytest.mark.root
NEAR, FAR = "10.77.31.1", "10.77.31.2"


@dataclass(frozen=True, slots=True)
class Wire:
    """Descriptors of the two namespaces."""

    near: int
    far: int
    name: str

    def swallow(self, on: bool) -> None:
        """Nothing that the far side says gets out any more, or again."""
        _ip("-n", f"{self.name}-b", "route", "add" if on else "del", "blackhole", f"{NEAR}/32")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def wire() -> Iterator[Wire]:
    name = f"engwire{os.getpid()}"
    sides = [f"{name}-a", f"{name}-b"]
    try:
        for side in sides:
            _ip("netns", "add", side)
        _ip("-n", sides[0], "link", "add", "wire", "type", "veth", "peer", "wire", "netns", sides[1])
        for side, ip in zip(sides, (NEAR, FAR), strict=True):
            _ip("-n", side, "address", "add", f"{ip}/24", "dev", "wire")
            _ip("-n", side, "link", "set", "wire", "up")
        near, far = (os.open(f"/run/netns/{side}", os.O_RDONLY) for side in sides)
        yield Wire(near, far, name)
        os.close(near)
        os.close(far)
    finally:
        for side in sides:
            subprocess.run(["ip", "netns", "del", side], check=False)


def test_silent_pooled_tunnel_costs_seconds_not_the_pings_deadline(
    start_mesh: Callable[..., Mesh], wire: Wire
) -> None:
    """The tunnel was good and its peer is gone: the connection is tried by a new one, which says why it cannot be had.
    When the peer is back, so is everything."""
    impatient = {"answer_patience": 0.3, "connect_timeout": 2.0, "ping_interval": 600, "ping_timeout": 600}
    mesh = start_mesh(workers=1, out=impatient)
    with closing(inside(wire.far, lambda: listening_socket(FAR))) as sock:
        mesh.into.engine.listen(sock.fileno(), ListenerKind.HBONE, 0, 8, 1)
        mesh.hbone = address(sock)
    mesh.netns = mesh.out.engine.add_netns(wire.near)
    with mesh.dial() as app:
        assert exchange(app, b"warm") == b"warm"
    wire.swallow(True)
    expect_reset(mesh.entry)
    assert mesh.out.reasons(2) == ["ok", "connect_timeout"]
    stats = mesh.out.engine.stats()
    assert stats["pool_retries"] == 1
    assert stats["tunnels_dialled"] == 2
    wire.swallow(False)
    with mesh.dial() as app:
        assert exchange(app, b"back") == b"back"
