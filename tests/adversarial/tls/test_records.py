"""Records after the handshake: tampering, key updates, padding, alerts, truncation (40, 44, 45)."""

from __future__ import annotations

import socket
import time

import pytest

from tests.support import frames, sanitized, servers, tls13
from tests.support.arena import Arena, assert_reset
from tests.support.enginehost import Deliver
from tests.support.frames import Type
from tests.support.peer import Peer


def broken(arena: Arena, peer: Peer) -> None:
    """The connection ends, and not politely."""
    end = peer.wait_end()
    assert end.closed
    arena.only_failure("peer_protocol")


def test_record_that_does_not_authenticate(arena: Arena) -> None:
    peer = arena.peer()
    record = bytearray(peer.seal(frames.ping()))
    record[-1] ^= 1
    peer.send_raw(bytes(record))
    broken(arena, peer)


def test_record_replayed(arena: Arena) -> None:
    peer = arena.peer()
    record = peer.seal(frames.ping())
    peer.send_raw(record + record)
    broken(arena, peer)


def test_record_left_out(arena: Arena) -> None:
    peer = arena.peer()
    peer.seal(frames.ping())
    peer.send(frames.ping())
    broken(arena, peer)


@pytest.mark.parametrize(
    "octets",
    [
        b"\x17\x03\x03\x00\x00",
        b"\x17\x03\x03\x00\x10" + bytes(16),
        b"\x17\x03\x03\x41\x01",
        b"\x17\x03\x03\xff\xff",
        b"\x16\x03\x03\x00\x04\x00\x00\x00\x00",
        b"\x15\x03\x03\x00\x02\x01\x00",
        b"\x99\x03\x03\x00\x20" + bytes(32),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
    ids=["empty", "only_a_tag", "too_long", "longest", "handshake_plain", "alert_plain", "type", "text"],
)
def test_record_of_the_wrong_shape(arena: Arena, octets: bytes) -> None:
    """An unprotected close_notify would be an attacker's way to truncate: it is broken protocol."""
    peer = arena.peer()
    peer.send_raw(octets)
    broken(arena, peer)


@pytest.mark.parametrize(
    "kind", [0, tls13.CHANGE_CIPHER_SPEC, 24, 255], ids=["zeros_only", "ccs", "heartbeat", "255"]
)
def test_inner_type_that_is_none(arena: Arena, kind: int) -> None:
    peer = arena.peer()
    peer.send_record(kind, b"" if kind == 0 else b"\x01")
    broken(arena, peer)


def test_inner_plaintext_above_the_limit(arena: Arena) -> None:
    peer = arena.peer()
    peer.send_record(tls13.APPLICATION, bytes((1 << 14) + 1))
    broken(arena, peer)


def test_record_padding_is_fine(arena: Arena) -> None:
    peer = arena.peer()
    peer.send_record(tls13.APPLICATION, frames.ping(b"12345678"), padding=10_000)
    assert peer.expect(Type.PING, where=lambda f: bool(f.flags & frames.ACK)).payload == b"12345678"


def test_empty_application_records_have_a_budget(arena: Arena) -> None:
    """A few are legal traffic padding; a million are not."""
    peer = arena.peer()
    for _ in range(5):
        peer.send_record(tls13.APPLICATION, b"")
    stream = peer.tunnel(arena.echo_authority)
    peer.echo(stream, b"fine")
    try:
        for _ in range(2000):
            batch = b"".join(peer.write_keys.seal(tls13.APPLICATION, b"") for _ in range(100))
            peer.send_raw(batch)
    except OSError:
        pass
    assert peer.wait_end().closed
    arena.ended_by({"peer_abuse"})


@pytest.mark.parametrize("request_ours", [False, True], ids=["alone", "asking_for_ours"])
def test_key_updates_between_data(arena: Arena, request_ours: bool) -> None:
    """At a sane rate keys may change at any record boundary, in both directions."""
    peer = arena.peer()
    stream = peer.tunnel(arena.echo_authority)
    for n in range(8):
        peer.update_keys(request=request_ours)
        peer.echo(stream, b"after update %d" % n)
    if request_ours:
        assert peer.key_updates == 8
    assert arena.endings() == {}


@pytest.mark.parametrize("request_ours", [False, True], ids=["alone", "asking_for_ours"])
def test_key_update_flood(arena: Arena, request_ours: bool) -> None:
    peer = arena.peer()
    spent = arena.host.cpu()
    try:
        for _ in range(20_000):
            peer.update_keys(request=request_ours)
            if peer.ending.closed:
                break
    except OSError:
        pass
    assert peer.wait_end().closed
    assert peer.key_updates < 1000
    assert sanitized.kind() or arena.host.cpu() - spent < 0.5
    arena.only_failure("peer_abuse")


@pytest.mark.parametrize(
    "message",
    [
        tls13.key_update(request=False)[:-1] + b"\x02",
        b"\x18\x00\x00\x02\x00\x00",
        b"\x01\x00\x00\x00",
        b"\x0d\x00\x00\x00",
        b"\x04\xff\xff\xff",
    ],
    ids=["key_update_2", "key_update_long", "client_hello", "certificate_request", "ticket_huge"],
)
def test_handshake_message_that_does_not_belong(arena: Arena, message: bytes) -> None:
    """Renegotiation does not exist in TLS 1.3; post-handshake authentication was not offered."""
    peer = arena.peer()
    peer.send_record(tls13.HANDSHAKE, message)
    broken(arena, peer)


def test_tickets_of_a_server_are_ignored(arena: Arena) -> None:
    """Real servers send NewSessionTicket; also cut into several records."""
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    ticket = b"\x04\x00\x00\x15" + bytes(8) + b"\x02ab" + b"\x00\x06ticket" + b"\x00\x00"
    peer.send_record(tls13.HANDSHAKE, ticket)
    peer.send_record(tls13.HANDSHAKE, ticket[:7])
    peer.send_record(tls13.HANDSHAKE, ticket[7:])
    peer.start()
    stream = peer.expect(Type.HEADERS).stream
    peer.send(frames.headers(stream, peer.encoder.encode([(":status", "200")])))
    app.sendall(b"unharmed")
    assert peer.read_exactly(stream, 8) == b"unharmed"


def test_peer_alert_ends_the_tunnel(arena: Arena) -> None:
    peer = arena.peer()
    peer.tunnel(arena.echo_authority)
    peer.send_record(tls13.ALERT, tls13.alert(80))
    assert peer.wait_end().closed
    arena.ended_once()


def test_close_notify_on_an_idle_tunnel_is_a_clean_end(arena: Arena) -> None:
    peer = arena.peer()
    stream = peer.tunnel(arena.echo_authority)
    peer.send(frames.data(stream, end=True))
    peer.expect(Type.DATA, stream, where=lambda f: f.ends_stream)
    peer.close_notify()
    assert peer.wait_end().closed
    assert arena.endings() == {}


@pytest.mark.parametrize("polite", [False, True], ids=["fin", "close_notify"])
def test_truncation_towards_the_server(arena: Arena, polite: bool) -> None:
    """The tunnel ends while a stream is open: the application behind it sees a reset, not an end of data."""
    with servers.sink() as app:
        seen: list[BaseException | bytes] = []

        def handler(sock: socket.socket) -> None:
            try:
                while chunk := sock.recv(100):
                    seen.append(chunk)
                seen.append(b"")
            except OSError as problem:
                seen.append(problem)

        app._handler = handler
        arena.rule(Deliver(app.address))
        peer = arena.peer()
        stream = peer.tunnel("10.0.0.1:80")
        peer.send(frames.data(stream, b"half a mess"))
        deadline = time.monotonic() + 3
        while not seen and time.monotonic() < deadline:
            peer.pump(0.01)
        if polite:
            peer.close_notify()
        peer.fin()
        while len(seen) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seen[0] == b"half a mess"
        assert isinstance(seen[1], ConnectionResetError), f"the application saw {seen[1]!r}"
        assert set(arena.endings()) <= ({"peer_reset", "truncated"} if polite else {"truncated"})
        arena.ended_once()


@pytest.mark.parametrize("polite", [False, True], ids=["fin", "close_notify"])
def test_truncation_towards_the_client(arena: Arena, polite: bool) -> None:
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    peer.start()
    stream = peer.expect(Type.HEADERS).stream
    peer.send(frames.headers(stream, peer.encoder.encode([(":status", "200")])), frames.data(stream, b"half"))
    assert app.recv(4) == b"half"
    if polite:
        peer.close_notify()
    peer.fin()
    assert_reset(app)
    arena.ended_once()


def test_end_of_stream_then_fin_without_close_notify_is_no_truncation_of_the_stream(arena: Arena) -> None:
    """END_STREAM was authenticated: the application's data is whole."""
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    peer = arena.accept(server)
    peer.start()
    stream = peer.expect(Type.HEADERS).stream
    answer = frames.headers(stream, peer.encoder.encode([(":status", "200")]))
    peer.send(answer, frames.data(stream, b"whole", end=True))
    assert app.recv(100, socket.MSG_WAITALL) == b"whole"
