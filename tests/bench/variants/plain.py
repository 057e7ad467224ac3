"""No proxy at all, and the cheapest possible pair of relays: the two ends of the scale."""

from __future__ import annotations

from tests.bench.cases import Case
from tests.bench.testbed import (
    ENTRY_ADDRESS,
    ENTRY_PORT,
    HBONE_ADDRESS,
    HBONE_PORT,
    SERVER_ADDRESS,
    Session,
)
from tests.bench.variants.base import Variant


class Direct(Variant):
    """The client talks to the server."""

    name = "none"

    def meaningless(self, case: Case) -> str | None:
        return "there is no proxy" if case.of_memory else super().meaningless(case)

    def start(self, session: Session, case: Case) -> None:
        session.entry = SERVER_ADDRESS


class Splice(Variant):
    """Two plain TCP relays with splice(): no TLS, no HTTP/2, no decision, a TCP connection for each connection."""

    name = "splice"

    def meaningless(self, case: Case) -> str | None:
        pipes = "its buffers are pipes in the kernel, not resident memory"
        return pipes if case.of_memory else super().meaningless(case)

    def start(self, session: Session, case: Case) -> None:
        relay = str(session.bed.programs / "relay")
        session.spawn("splice-inbound", [relay, HBONE_ADDRESS, SERVER_ADDRESS], HBONE_PORT)
        session.spawn("splice-outbound", [relay, ENTRY_ADDRESS, HBONE_ADDRESS], ENTRY_PORT)
