"""The root is replaced while engines speak: certificates of every step of it go with those of every other."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hbone.spiffe import SpiffeId
from hbone.svid import from_issued, make_csr
from istiodlite.ca.authority import Authority
from istiodlite.ca.issue import chain, issue, read_csr
from istiodlite.ca.roots import advance
from tests.support import patterns
from tests.support.arena import Arenas
from tests.support.enginehost import TunnelTo
from tests.support.pki import Credential

SERVER = SpiffeId("cluster.local", "shop", "server")
CLIENT = SpiffeId("cluster.local", "shop", "client")


def fetch(data: Path, identity: SpiffeId) -> Credential:
    """As an agent does: a request, the answer checked and taken apart by its own code."""
    authority, now = Authority.load_or_create(data, "cluster.local"), datetime.now(UTC)
    csr, key = make_csr(identity)
    parts = chain(authority, issue(authority, identity, read_csr(csr), timedelta(days=1), now))
    svid = from_issued(identity, key, parts, now)
    return Credential(svid.chain_pem, svid.key_pem, svid.roots_pem, (str(identity),))


def test_root_rotation_overlap(arenas: Arenas, tmp_path: Path) -> None:
    stages: list[tuple[Credential, Credential]] = []
    for stage in range(3):
        if stage:
            advance(tmp_path, "cluster.local", datetime.now(UTC))
        else:
            Authority.load_or_create(tmp_path, "cluster.local")
        stages.append((fetch(tmp_path, CLIENT), fetch(tmp_path, SERVER)))
    for (client, _), (_, server) in itertools.product(stages, repeat=2):
        with arenas.enter(server=server) as arena:
            number = 4_000 + arena.tag
            arena.host.identity(number, client)
            rule = TunnelTo(arena.hbone, (str(SERVER),), number, arena.echo_authority)
            target = arena.host.listen("OUTBOUND", arena.via, rule)
            patterns.exchange(target, 7, 2000, timeout=5)
    advance(tmp_path, "cluster.local", datetime.now(UTC))
    with arenas.enter(server=fetch(tmp_path, SERVER)) as arena:
        number = 4_000 + arena.tag
        arena.host.identity(number, stages[0][0])
        rule = TunnelTo(arena.hbone, (str(SERVER),), number, arena.echo_authority)
        target = arena.host.listen("OUTBOUND", arena.via, rule)
        with pytest.raises((AssertionError, OSError, EOFError)):
            patterns.exchange(target, 7, 2000, timeout=5)
