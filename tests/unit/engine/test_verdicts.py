"""Verdicts that the engine gives by itself: to whom, with which words, and never after they were forgotten."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from hbone.engine import (
    CLIENT,
    RANDOM,
    Accepted,
    Admitted,
    Closed,
    ConnectRequested,
    Engine,
    Established,
    Event,
    Finished,
    Forgotten,
    Kept,
    ListenerKind,
    reason_code,
)
from tests.support.pki import Authority
from tests.support.ports import wait_until
from tests.unit.engine.conftest import (
    CLIENT_URI,
    App,
    Host,
    Mesh,
    dial,
    echo,
    exchange,
    expect_reset,
    split_authority,
)

StartMesh = Callable[..., Mesh]
StartHost = Callable[..., Host]
StartApp = Callable[..., App]

NUMBER = 40
FORWARDED = ("forwarded", f'for="{CLIENT}";host=web.shop')
TRACE = ("traceparent", f"00-{RANDOM}{RANDOM}-{RANDOM}-00")


def keep_plain(engine: Engine, event: Any, **changes: Any) -> Kept:
    """The verdict of `deliver`, kept for streams like the event's but for `changes`."""
    where = split_authority(event.authority)
    return engine.keep_plain(event._replace(**changes), NUMBER, engine.epoch(), where, netns=0)


def keep_tunnel(mesh: Mesh, event: Accepted, *headers: tuple[str, str], **changes: Any) -> Kept:
    """The verdict of `Mesh.to_tunnel`, kept."""
    engine = mesh.out.engine
    return engine.keep_tunnel(
        event._replace(**changes),
        NUMBER,
        engine.epoch(),
        mesh.hbone,
        netns=0,
        identity=1,
        sans=mesh.sans,
        authority=f"{mesh.app[0]}:{mesh.app[1]}",
        headers=headers,
    )


def talk(mesh: Mesh) -> tuple[str, int]:
    """One connection from end to end; the client's address."""
    with mesh.dial() as sock:
        me: tuple[str, int] = sock.getsockname()[:2]
        assert exchange(sock, b"hello") == b"hello"
        return me


def first(mesh: Mesh) -> tuple[Accepted, ConnectRequested]:
    """What was asked about the first connection."""
    talk(mesh)
    return mesh.out.wait(Accepted)[0], mesh.into.wait(ConnectRequested)[0]


def test_who_is_like_another_is_not_asked_about_but_told_of(start_mesh: StartMesh) -> None:
    mesh = start_mesh(event_hold=0.5)
    accepted, requested = first(mesh)
    assert keep_tunnel(mesh, accepted) is Kept.YES
    assert keep_plain(mesh.into.engine, requested._replace(headers=())) is Kept.YES
    me = talk(mesh)
    for host, kind, tag in ((mesh.out, Accepted, 3), (mesh.into, ConnectRequested, 7)):
        (told,) = host.wait(Finished)
        assert (told.verdict, told.tag, told.reason_code, told.established) == (NUMBER, tag, 0, True)
        assert (told.bytes_from_client, told.bytes_to_client) == (5, 5)
        assert 0 < told.at <= told.ended
        assert len(host.all(kind)) == 1
        stats = host.engine.stats()
        assert (stats["verdict_hits"], stats["verdict_misses"], stats["verdicts_kept"]) == (1, 1, 1)
    assert mesh.out.all(Finished)[0].peer == me
    assert mesh.into.all(Finished)[0].status == 200


def test_one_that_lives_longer_is_told_of_when_it_begins_and_when_it_ends(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    accepted, _ = first(mesh)
    keep_tunnel(mesh, accepted)
    with mesh.dial() as sock:
        (told,) = mesh.out.wait(Admitted)
        assert (told.verdict, told.peer) == (NUMBER, sock.getsockname()[:2])
        assert mesh.out.wait(Established, 2)[1].token == told.token
        assert exchange(sock, b"again") == b"again"
    closed = mesh.out.closed(2)[1]
    assert (closed.token, closed.bytes_from_client, closed.reason_code) == (told.token, 5, 0)
    assert told.at <= closed.at


def test_each_stream_gets_its_own_client_and_random_numbers(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    accepted, _ = first(mesh)
    assert keep_tunnel(mesh, accepted, ("baggage", "a=b"), FORWARDED, TRACE, ("x-last", "1")) is Kept.YES
    clients = [talk(mesh) for _ in range(2)]
    headers = [event.headers for event in mesh.into.wait(ConnectRequested, 3)[1:]]
    for (ip, port), sent in zip(clients, headers, strict=True):
        assert [name for name, _ in sent] == ["baggage", "forwarded", "traceparent", "x-last"]
        assert dict(sent)["forwarded"] == f'for="{ip}:{port}";host=web.shop'
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", dict(sent)["traceparent"])
    assert dict(headers[0])["traceparent"] != dict(headers[1])["traceparent"]


def test_an_ipv6_client_stands_in_brackets(start_mesh: StartMesh) -> None:
    mesh = start_mesh(host="::1")
    talk(mesh)
    (accepted,) = mesh.out.wait(Accepted)
    engine = mesh.out.engine
    engine.keep_tunnel(
        accepted, NUMBER, engine.epoch(), mesh.hbone, netns=0, identity=1, sans=mesh.sans,
        authority=f"[::1]:{mesh.app[1]}", headers=[FORWARDED],
    )  # fmt: skip
    _, port = talk(mesh)
    assert dict(mesh.into.wait(ConnectRequested, 2)[1].headers) == {
        "forwarded": f'for="[::1]:{port}";host=web.shop'
    }


@pytest.mark.parametrize(
    "changes",
    [{"tag": 4}, {"kind": ListenerKind.INBOUND}, {"local": ("127.0.0.1", 1)}, {"local": ("127.0.0.2", 0)}],
    ids=lambda changes: next(iter(changes)),
)
def test_captured_connections_that_differ_are_asked_about(
    start_mesh: StartMesh, changes: dict[str, Any]
) -> None:
    mesh = start_mesh()
    accepted, _ = first(mesh)
    if "local" in changes and not changes["local"][1]:
        changes = {"local": (changes["local"][0], accepted.local[1])}
    assert keep_tunnel(mesh, accepted, **changes) is Kept.YES
    talk(mesh)
    mesh.out.wait(Accepted, 2)
    assert not mesh.out.all(Admitted)


SAID = (
    ("baggage", "k8s.namespace.name=shop"),
    ("forwarded", 'for="10.0.0.1:41200";host=web.shop'),
    ("x-forwarded-network", "net1"),
    ("traceparent", "00-1-2-3"),
)
SAME = (
    ("traceparent", "00-4-5-6"),
    ("x-forwarded-network", "net1"),
    ("forwarded", 'for="[fd00::1]:9";host=web.shop'),
    ("other", "x"),
    ("baggage", "k8s.namespace.name=shop"),
)


def test_kept_verdict_answers_with_its_headers(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    _, requested = first(mesh)
    where, said = split_authority(requested.authority), (("baggage", "k8s.namespace.name=shop"),)
    engine = mesh.into.engine
    assert engine.keep_plain(requested, NUMBER, engine.epoch(), where, netns=0, headers=said) is Kept.YES
    for _ in range(2):
        talk(mesh)
    assert len(mesh.into.all(ConnectRequested)) == 1
    assert [told.response_headers for told in mesh.out.wait(Established, 3)] == [(), said, said]


def test_streams_are_alike_whatever_else_they_say(start_mesh: StartMesh) -> None:
    mesh = start_mesh()
    mesh.headers = SAID
    _, requested = first(mesh)
    assert keep_plain(mesh.into.engine, requested) is Kept.YES
    mesh.headers = SAME
    talk(mesh)
    mesh.into.wait(Admitted)
    assert len(mesh.into.all(ConnectRequested)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"tag": 8},
        {"local": ("127.0.0.2", 0)},
        {"peer": ("127.0.0.2", 1)},
        {"peer_identity": CLIENT_URI + "2"},
        {"authority": "127.0.0.1:1"},
        {"headers": SAID[1:]},
        {"headers": (("baggage", ""), *SAID[1:])},
        {"headers": (("baggage", "k8s.namespace.name=shop2"), *SAID[1:])},
        {"headers": (SAID[0], ("forwarded", 'for="10.0.0.1:41200"'), SAID[2])},
        {"headers": (SAID[0], ("forwarded", 'for="10.0.0.1";host=web.shop2'), SAID[2])},
        {"headers": (SAID[0], ("forwarded", ";host=web.shop"), SAID[2])},
        {"headers": (SAID[0], ("forwarded", 'for="_x";host=web.shop'), SAID[2])},
        {"headers": SAID[:2]},
        {"headers": (*SAID[:2], ("x-forwarded-network", "net2"))},
    ],
    ids=lambda changes: str(next(iter(changes.items())))[:60],
)
def test_streams_that_differ_are_asked_about(start_mesh: StartMesh, changes: dict[str, Any]) -> None:
    mesh = start_mesh()
    mesh.headers = SAID
    _, requested = first(mesh)
    if "local" in changes:
        changes = {"local": (changes["local"][0], requested.local[1])}
    assert keep_plain(mesh.into.engine, requested, **changes) is Kept.YES
    talk(mesh)
    mesh.into.wait(ConnectRequested, 2)
    assert not mesh.into.all(Admitted)


def test_a_peers_port_makes_no_difference_but_its_address_does_on_the_way_in(
    start_host: StartHost, start_app: StartApp
) -> None:
    app = start_app(echo)
    host = start_host(lambda host, event: host.engine.connect_plain(event.token, app.address, netns=0))
    entry = host.listen(ListenerKind.INBOUND)
    with dial(entry) as sock:
        assert exchange(sock, b"1") == b"1"
    (accepted,) = host.wait(Accepted)
    engine = host.engine
    kept = accepted._replace(peer=("127.0.0.1", 9))
    assert engine.keep_plain(kept, NUMBER, engine.epoch(), app.address, netns=0) is Kept.YES
    with dial(entry) as sock:
        assert exchange(sock, b"2") == b"2"
    host.wait(Admitted)
    with socket.create_connection(entry, source_address=("127.0.0.2", 0)) as sock:
        assert exchange(sock, b"3") == b"3"
    assert host.wait(Accepted, 2)[1].peer[0] == "127.0.0.2"


def test_what_cannot_be_kept_is_said(start_mesh: StartMesh) -> None:
    mesh = start_mesh(max_verdicts=1)
    _, requested = first(mesh)
    engine = mesh.into.engine
    old = engine.epoch()
    engine.forget()
    where = split_authority(requested.authority)
    assert engine.keep_plain(requested, 1, old, where, netns=0) is Kept.STALE
    assert engine.keep_plain(requested, 1, engine.epoch(), where, netns=99) is Kept.STALE
    for headers in ((("baggage", "a"), ("baggage", "a")), (("baggage", "x" * 513),)):
        assert keep_plain(engine, requested, headers=headers) is Kept.NO_KEY
    assert keep_plain(engine, requested) is Kept.YES
    assert keep_plain(engine, requested) is Kept.THERE
    assert keep_plain(engine, requested, tag=9) is Kept.FULL
    for value in ("\x03", "x ", "x" * 17000):
        with pytest.raises(ValueError, match="cannot be sent"):
            keep_tunnel(mesh, mesh.out.all(Accepted)[0], ("a", CLIENT + value))


def test_none_are_kept_where_there_is_no_room_for_any(start_mesh: StartMesh) -> None:
    mesh = start_mesh(max_verdicts=0)
    accepted, _ = first(mesh)
    assert keep_tunnel(mesh, accepted) is Kept.NO_KEY


def renew(engine: Engine) -> None:
    leaf = Authority.root().leaf(CLIENT_URI)
    engine.set_identity(1, leaf.chain_pem, leaf.key_pem, leaf.roots_pem, ("cluster.local",))


@pytest.mark.parametrize(
    "change",
    [
        Engine.forget,
        renew,
        lambda engine: engine.drop_identity(1),
        lambda engine: engine.remove_netns(engine.add_netns(_own_netns())),
        lambda engine: engine.drain(99),
        Engine.drain_all,
    ],
    ids=["forget", "set_identity", "drop_identity", "remove_netns", "drain", "drain_all"],
)
def test_every_verdict_is_forgotten_when_something_changes(
    start_mesh: StartMesh, change: Callable[[Engine], object]
) -> None:
    mesh = start_mesh()
    accepted, _ = first(mesh)
    engine = mesh.out.engine
    keep_tunnel(mesh, accepted)
    before = engine.epoch()
    change(engine)
    assert engine.epoch() > before
    stats = engine.stats()
    assert (stats["verdicts_kept"], stats["verdicts_forgotten"]) == (0, 1)
    assert [event.epoch for event in mesh.out.wait(Forgotten, 2)] == [before, before]
    change(engine)
    assert engine.stats()["verdicts_forgotten"] == 1, "nothing was kept"


def _own_netns() -> int:
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def test_a_kept_way_that_leads_nowhere_ends_with_its_reason(
    start_host: StartHost, start_app: StartApp
) -> None:
    app = start_app(echo)
    host = start_host(lambda host, event: host.engine.connect_plain(event.token, app.address, netns=0))
    entry = host.listen(ListenerKind.OUTBOUND)
    with dial(entry) as sock:
        assert exchange(sock, b"1") == b"1"
    engine = host.engine
    engine.keep_plain(host.wait(Accepted)[0], NUMBER, engine.epoch(), ("127.0.0.1", 1), netns=0)
    expect_reset(entry)

    def ends() -> list[int]:
        return [e.reason_code for kind in (Closed, Finished) for e in host.all(kind)]

    wait_until(lambda: len(ends()) == 2, "both ends are told")
    assert sorted(ends()) == [0, reason_code("connect_refused")]


class Flipping:
    """An owner whose answer changes. It keeps what it allows, and forgets before it changes its mind."""

    def __init__(self, app: tuple[str, int]) -> None:
        self.app, self.lock, self.version = app, threading.Lock(), 0

    def decide(self, host: Host, event: Any) -> None:
        with self.lock:
            engine, epoch = host.engine, host.engine.epoch()
            if self.version % 2:
                engine.refuse(event.token, reason_code("policy_no_match"))
                return
            engine.connect_plain(event.token, self.app, netns=0)
            engine.keep_plain(event, self.version, epoch, self.app, netns=0)

    def flip(self, engine: Engine) -> None:
        with self.lock:
            engine.forget()
            self.version += 1


def _served(entry: tuple[str, int]) -> bool:
    try:
        with dial(entry) as sock:
            sock.sendall(b"x")
            return sock.recv(1) == b"x"
    except ConnectionError:
        return False


def _names_in_order(events: list[Event], workers: int) -> bool:
    """No verdict is named after every worker has said that its epoch is over."""
    heard: Counter[int] = Counter()
    over = -1
    for event in events:
        if isinstance(event, Forgotten):
            heard[event.epoch] += 1
            if heard[event.epoch] == workers:
                over = max(over, event.epoch)
        elif isinstance(event, (Admitted, Finished)) and event.verdict <= over:
            return False
    return True


def test_nobody_gets_through_by_a_verdict_that_was_forgotten(
    start_host: StartHost, start_app: StartApp
) -> None:
    """Clients connect all the time while the answer flips. Whoever begins and ends within one answer gets it."""
    flips, each = 30, 12
    owner = Flipping(start_app(echo).address)
    host = start_host(owner.decide, workers=2, event_hold=0.005)
    entry = host.listen(ListenerKind.OUTBOUND)
    seen: Counter[tuple[int, bool]] = Counter()
    done, lock = threading.Event(), threading.Lock()

    def client() -> None:
        while not done.is_set():
            before = owner.version
            served = _served(entry)
            if owner.version == before:
                with lock:
                    seen[before, served] += 1

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    try:
        for version in range(flips):

            def enough(version: int = version) -> bool:
                return seen[version, True] + seen[version, False] >= each

            wait_until(enough, f"clients under answer {version}")
            owner.flip(host.engine)
    finally:
        done.set()
        for thread in clients:
            thread.join()
    wrong = {key: count for key, count in seen.items() if key[1] == bool(key[0] % 2)}
    assert not wrong
    stats = host.engine.stats()
    assert stats["verdict_hits"] > flips
    assert stats["verdicts_forgotten"] >= flips / 2
    host.stop()
    # Verdicts are numbered by answers here, and each answer is an epoch.
    assert _names_in_order(host.events, 2)
