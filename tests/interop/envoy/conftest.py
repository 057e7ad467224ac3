"""An engine and the certificates it shares with Envoy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support import servers
from tests.support.enginehost import SMALL_DEADLINES, Address, Deliver, EngineHost, Rule, TunnelTo
from tests.support.pki import Authority, Credential, spiffe

OURS, ENVOYS = spiffe("ours"), spiffe("envoy")


@dataclass(slots=True)
class Mesh:
    """One engine with an identity, and the credential an Envoy is to show."""

    host: EngineHost
    ours: Credential
    envoys: Credential
    tag: int = 0

    def outbound(
        self, server: Address, *, sans: tuple[str, ...] = (ENVOYS,), authority: str = "10.1.1.1:80"
    ) -> Address:
        """A captured-outbound listener towards an HBONE server."""
        self.tag += 1
        return self.host.listen(
            "OUTBOUND", self.tag, TunnelTo(server, sans, 1, authority, (("baggage", "a=b"),))
        )

    def inbound(self, rule: Rule | None = None) -> Address:
        """An HBONE listener; delivers to the authority unless told otherwise."""
        self.tag += 1
        return self.host.listen("HBONE", self.tag, rule or Deliver(), identity=1)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """One engine for the tests of a module."""
    root = Authority.root("interop root").intermediate("interop intermediate")
    host = EngineHost(**{**SMALL_DEADLINES, "stall_timeout": 30.0, "half_close_timeout": 30.0})
    found = Mesh(host, root.leaf(OURS), root.leaf(ENVOYS))
    host.identity(1, found.ours)
    yield found
    assert host.alive
    host.close()


@pytest.fixture
def echo_server() -> Iterator[servers.Server]:
    """An echo server of this test."""
    with servers.echo() as server:
        yield server
