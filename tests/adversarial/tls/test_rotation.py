"""Certificates change under load, and nobody notices (47); live tunnels survive whatever happens to theirs."""

from __future__ import annotations

import threading
import time

import pytest

from tests.support import lasting, patterns
from tests.support.arena import Arena, Arenas
from tests.support.enginehost import Deliver, TunnelTo
from tests.support.peer import Peer, Refused
from tests.support.pki import Authority, Credential, join_roots, spiffe

SERVER, CLIENT = spiffe("rotating-server"), spiffe("rotating-client")


def with_roots(credential: Credential, *roots: Authority) -> Credential:
    """The same credential, believing in all of these."""
    return Credential(credential.chain_pem, credential.key_pem, join_roots(*roots), credential.uris)


@pytest.mark.timeout(240 + 2 * lasting.seconds(0))
def test_rotation_under_load(arenas: Arenas) -> None:
    """Leaves, then roots with an overlap, again and again, while connections come and go: none fails."""
    old, new = Authority.root("old root"), Authority.root("new root")
    first = with_roots(old.leaf(SERVER), old)
    # few streams a tunnel, so that many tunnels are dialled while certificates change; their memory is kept
    # by the allocator (it does not grow with further rotations)
    with arenas.enter(server=first, pool_streams=3, pool_idle_timeout=0.5, slack=24 << 20) as arena:
        client_id = 1_000 + arena.tag
        arena.host.identity(client_id, with_roots(old.leaf(CLIENT), old))
        rule = TunnelTo(arena.hbone, (SERVER,), client_id, arena.echo_authority)
        arena.host.rule(arena.via, rule)
        target = arena.host.listen("OUTBOUND", arena.via, rule)
        problems: list[BaseException] = []
        stop, done = threading.Event(), [0]

        def load(seed: int) -> None:
            while not stop.is_set():
                try:
                    patterns.exchange(target, seed, 2000, timeout=5)
                    done[0] += 1
                except BaseException as problem:  # raised below
                    problems.append(problem)
                    return

        threads = [threading.Thread(target=load, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        steps = [
            (old, (old,)),
            (old, (old, new)),
            (new, (old, new)),
            (new, (new,)),
            (new, (old, new)),
            (old, (old, new)),
        ]
        until = time.monotonic() + lasting.seconds(0)
        # the overlap has to outlast a handshake, also on a busy machine
        pause = min(60.0, max(0.15, lasting.seconds(0) / 60))
        turns = 0
        while turns < 2 or time.monotonic() < until:
            turns += 1
            for signer, roots in steps:
                # one side after the other, as in a real rotation
                arena.host.identity(arena.tag, with_roots(signer.leaf(SERVER), *roots))
                time.sleep(0.02)
                arena.host.identity(client_id, with_roots(signer.leaf(CLIENT), *roots))
                arena.host.events()  # they would pile up there, where memory is measured
                time.sleep(pause)
        stop.set()
        for thread in threads:
            thread.join(60)
        assert not problems, f"{problems[0]!r} after {done[0]} connections"
        assert done[0] > 100
        # by now somebody has really seen another certificate
        assert arena.host.stats()["tunnels_dialled"] > 10


def turned_away(hbone: tuple[str, int], credential: Credential) -> bool:
    """A new connection gets no HTTP/2."""
    try:
        with Peer.dial(hbone, credential) as peer:
            end = peer.wait_end()
            return end.closed and end.frames == []
    except Refused:
        return True


@pytest.mark.parametrize("change", ["replaced", "dropped"])
def test_live_tunnels_survive_their_identity(arena: Arena, change: str) -> None:
    identity = 2_000 + arena.tag
    arena.host.identity(identity, arena.server)
    hbone = arena.host.listen("HBONE", arena.tag, Deliver(arena.echo), identity=identity)
    with Peer.dial(hbone, arena.client) as peer:
        peer.start()
        stream = peer.tunnel(arena.echo_authority)
        if change == "dropped":
            arena.host.engine("drop_identity", identity)
        else:
            arena.host.identity(identity, Authority.root("elsewhere").leaf(SERVER))
        peer.echo(stream, b"still here")
        peer.echo(peer.tunnel(arena.echo_authority), b"new streams too")
        assert turned_away(hbone, arena.client)
    assert set(arena.endings()) <= {"identity_unavailable", "peer_cert_invalid", "truncated"}


def test_identity_that_is_not_there(arena: Arena) -> None:
    """As client: refused with a reason, without dialling. As server: the handshake is refused."""
    server = arena.evil_server()
    arena.refused(arena.outbound(server, identity=9_999))
    arena.wait_endings({"identity_unavailable": 1})
    server.settimeout(0.1)
    with pytest.raises(TimeoutError):
        server.accept()


@pytest.mark.parametrize("what", ["chain", "key", "roots", "mismatch", "empty"])
def test_unusable_material_leaves_the_old_identity_in_place(arena: Arena, what: str) -> None:
    identity = 3_000 + arena.tag
    arena.host.identity(identity, arena.server)
    good = arena.server
    chain, key, roots = good.chain_pem, good.key_pem, good.roots_pem
    if what == "chain":
        chain = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    elif what == "key":
        key = b"not a key"
    elif what == "roots":
        roots = b""
    elif what == "mismatch":
        key = arena.client.key_pem
    else:
        chain = key = roots = b""
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        arena.host.engine("set_identity", identity, chain, key, roots, ["cluster.local"])
    hbone = arena.host.listen("HBONE", arena.tag, Deliver(arena.echo), identity=identity)
    with Peer.dial(hbone, arena.client) as peer:
        peer.start()
        peer.echo(peer.tunnel(arena.echo_authority), b"as before")
