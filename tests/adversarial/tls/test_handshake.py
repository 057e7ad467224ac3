"""Handshakes that are no TLS, old TLS, slow, too many, or in strange pieces (32, 40, 41, 42, 43, 44)."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.support import frames, lasting, sanitized, tls13
from tests.support.arena import Arena, Arenas
from tests.support.peer import Peer, Refused
from tests.support.pki import Credential, load_chain, unverified_context
from tests.support.ports import wait_until


def client_hello() -> bytes:
    """The first flight of an honest client."""
    outgoing = ssl.MemoryBIO()
    tls = unverified_context(server=False).wrap_bio(ssl.MemoryBIO(), outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def context_of(credential: Credential, version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that speaks only this version."""
    context = unverified_context(server=False)
    load_chain(context, credential)
    context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize(
    "octets",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", frames.PREFACE + frames.settings(), b"\x80" * 100, b"\0" * 5],
    ids=["http1", "http2", "noise", "zeros"],
)
def test_plaintext_on_15008(arena: Arena, octets: bytes) -> None:
    with socket.create_connection(arena.hbone, timeout=30) as sock:
        sock.sendall(octets)
        got = b""
        try:
            while chunk := sock.recv(4096):
                got += chunk
        except ConnectionResetError:
            pass
    assert len(got) < 100, "something other than an alert came back"
    assert got[:1] in (b"", b"\x15")
    arena.only_failure("tls_handshake_failed")


def test_silence_ends_at_the_handshake_deadline(arena: Arena) -> None:
    start = time.monotonic()
    with socket.create_connection(arena.hbone, timeout=30) as sock, contextlib.suppress(ConnectionResetError):
        assert sock.recv(100) == b""
    assert 0.8 < time.monotonic() - start < 30  # handshake_timeout is 1 s here
    arena.only_failure("tls_handshake_timeout")


def test_connection_that_leaves_before_the_handshake_costs_nothing(arena: Arena) -> None:
    """Port scanners and health checks connect and go."""
    for _ in range(50):
        socket.create_connection(arena.hbone, timeout=30).close()
    peer = arena.peer()
    peer.echo(peer.tunnel(arena.echo_authority), b"open for business")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1])
def test_legacy_and_renegotiation_versions(arena: Arena, version: ssl.TLSVersion) -> None:
    with pytest.raises(Refused):
        arena.dial(context=context_of(arena.client, version))
    arena.only_failure("tls_handshake_failed")


def s_client(arena: Arena, suite: str, folder: Path) -> list[str]:
    """OpenSSL's test client with our certificate and one cipher suite."""
    chain, key, _ = arena.client.write(folder, "client")
    where = "{}:{}".format(*arena.hbone)
    name = ["-connect", where, "-ciphersuites", suite, "-alpn", "h2", "-cert", str(chain), "-key", str(key)]
    return ["openssl", "s_client", *name]


@pytest.mark.parametrize("suite", ["TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_CCM_SHA256"])
def test_legacy_and_renegotiation_suites_outside_the_list(arena: Arena, suite: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*s_client(arena, suite, tmp_path), "-brief"],
        input=b"",
        capture_output=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert b"handshake failure" in done.stderr
    arena.only_failure("tls_handshake_failed")


@pytest.mark.parametrize("suite", ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"])
def test_suites_of_the_list(arena: Arena, suite: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*s_client(arena, suite, tmp_path), "-quiet", "-nocommands"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(frames.PREFACE + frames.settings())
        client.stdin.flush()
        header = client.stdout.read(9)
        assert header[3] == frames.Type.SETTINGS
        client.terminate()


@pytest.mark.parametrize("alpn", [(), ("http/1.1",), ("h2c", "http/1.1")], ids=["none", "http1", "others"])
def test_alpn_missing_or_other_as_server(arena: Arena, alpn: tuple[str, ...]) -> None:
    """Only h2 is spoken here: no_application_protocol, or the end, before any HTTP/2."""
    try:
        peer = arena.dial(alpn=alpn)
    except Refused:
        pass
    else:
        end = peer.wait_end()
        assert end.closed
        assert end.frames == []
    arena.only_failure("tls_handshake_failed")


def test_alpn_list_with_h2_anywhere(arena: Arena) -> None:
    peer = arena.dial(alpn=("http/1.1", "h2"))
    assert peer.alpn == "h2"
    peer.start()


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)], ids=["none", "other"])
def test_alpn_missing_or_other_as_client(arena: Arena, alpn: tuple[str, ...]) -> None:
    """A server that does not agree on h2 is not an HBONE server."""
    server = arena.evil_server()
    app = arena.app(arena.outbound(server))
    try:
        peer = arena.accept(server, alpn=alpn)
    except Refused:
        pass
    else:
        end = peer.wait_end()
        assert end.closed
        assert not any(f.kind == frames.Type.HEADERS for f in end.frames)
    app.settimeout(5)
    with pytest.raises(ConnectionResetError):
        app.recv(1)
    arena.ended_by({"tls_handshake_failed"})


def test_one_ticket_that_says_nothing_and_allows_no_early_data(arena: Arena) -> None:
    """It is a number of 32 octets; RFC 8446 4.6.1."""
    peer = arena.peer()
    peer.echo(peer.tunnel(arena.echo_authority), b"x")
    (ticket,) = peer.tickets
    nonce_size = ticket[12]
    number_size = int.from_bytes(ticket[13 + nonce_size : 15 + nonce_size])
    assert number_size == 32
    assert ticket[15 + nonce_size + number_size :] == b"\0\0", "no extension"


def test_no_tickets_are_issued_where_nothing_resumes(arenas: Arenas) -> None:
    with arenas.enter(max_sessions=0) as arena:
        peer = arena.peer()
        peer.echo(peer.tunnel(arena.echo_authority), b"x")
        assert not peer.tickets


def test_handshake_slowloris(arenas: Arenas) -> None:
    """2,000 sockets stopped in the middle of a ClientHello."""
    count = 2000
    half = client_hello()[:60]
    with arenas.enter(slack=20 << 20) as arena:
        before = arena.host.rss()
        socks = [socket.create_connection(arena.hbone, timeout=30) for _ in range(count)]
        try:
            start = time.monotonic()
            for sock in socks:
                try:
                    sock.send(half)
                except OSError:
                    continue  # shed already
            highest = 0
            for sock in socks:
                sock.settimeout(30)
                try:
                    while sock.recv(4096):
                        pass
                except ConnectionError:
                    pass
                highest = max(highest, arena.host.rss())
            assert time.monotonic() - start < 30  # handshake_timeout is 1 s here
        finally:
            for sock in socks:
                sock.close()
        assert sanitized.kind() or (highest - before) / count < 8 << 10, (
            f"{(highest - before) // count} octets each"
        )
        assert set(arena.host.tunnel_failures(arena.tag, arena.mark)) <= {"tls_handshake_timeout"}
        assert (
            arena.counted("handshakes_failed")
            + arena.counted("tunnel_failures")
            + arena.counted("shed_handshakes")
            >= count
        )
        peer = arena.peer()
        peer.echo(peer.tunnel(arena.echo_authority), b"still served")


def test_handshake_flood_is_shed_above_the_cap(arenas: Arenas) -> None:
    """More at once than allowed: the surplus is turned away at once and counted, the rest is served."""
    with arenas.enter(max_handshakes=50) as arena:
        half, socks = client_hello()[:60], []
        try:
            for _ in range(300):
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    socks.append(socket.create_connection(arena.hbone, timeout=30))
                    socks[-1].send(half)
            wait_until(lambda: arena.counted("shed_handshakes") >= 200, "the surplus counted")
            assert arena.host.stats()["handshakes_live"] <= 50
        finally:
            for sock in socks:
                sock.close()
        served_in_the_end(arena)


def test_half_open_connections_keep_nobody_out(arenas: Arenas) -> None:
    """As many as there may be, that say nothing or no more than their hello: newcomers get their places. A handshake
    may take far longer here than anybody who is honest waits."""
    with arenas.enter(max_handshakes=20, handshake_timeout=120.0) as arena:
        for said in (b"", client_hello()[:60], client_hello()):
            socks = [socket.create_connection(arena.hbone, timeout=30) for _ in range(30)]
            try:
                for sock in socks:
                    with contextlib.suppress(OSError):  # it has been sent away
                        sock.sendall(said)
                wait_until(lambda: arena.host.stats()["handshakes_live"] == 20, "no place is left")
                served_in_the_end(arena)
                assert arena.host.stats()["handshakes_live"] <= 20
            finally:
                for sock in socks:
                    sock.close()
            wait_until(lambda: arena.host.stats()["handshakes_live"] == 0, "the half-open ones gone")
        assert arena.counted("shed_handshakes") >= 30


def served_in_the_end(arena: Arena) -> None:
    """Those who have begun in earnest keep their places for two seconds."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with Peer.dial(arena.hbone, arena.client) as peer:
                peer.start()
                peer.echo(peer.tunnel(arena.echo_authority), b"served")
            return
        except (Refused, ConnectionResetError):
            assert time.monotonic() < deadline


@pytest.mark.timeout(120 + lasting.seconds(0))
def test_handshake_flood_leaves_existing_tunnels_alone(arenas: Arenas) -> None:
    """Two clients shake hands as fast as they can, for two seconds or longer; a live tunnel's echoes stay quick. The
    attackers need as much CPU as the engine, on the same cores, so the canary is given more time."""
    with arenas.enter(limit=0.15) as arena:
        shake_hands_beside(arena)


def shake_hands_beside(arena: Arena) -> None:
    """The attack itself."""
    peer = arena.peer()
    peer.generous = True
    stream = peer.tunnel(arena.echo_authority)
    stop, made = threading.Event(), [0] * 2

    def shake(n: int) -> None:
        while not stop.is_set():
            with Peer.dial(arena.hbone, arena.client):
                made[n] += 1

    threads = [threading.Thread(target=shake, args=(n,)) for n in range(len(made))]
    for thread in threads:
        thread.start()
    until = time.monotonic() + lasting.seconds(2)
    while time.monotonic() < until or sum(made) <= 50:
        peer.echo(stream, b"still here")  # has its own deadline; how quick is the canary's to say
    stop.set()
    for thread in threads:
        thread.join()


def test_record_fragments(arena: Arena) -> None:
    """A ClientHello in records of one octet is legal."""
    peer = arena.dial(reshape=lambda flight: tls13.as_plain_records(flight, 1))
    peer.start()
    peer.echo(peer.tunnel(arena.echo_authority), b"in pieces")


def test_empty_handshake_records_are_refused(arena: Arena) -> None:
    """Zero-length handshake fragments are forbidden (RFC 8446 5.1)."""
    peer = arena.raw()
    peer.send_raw(b"\x16\x03\x01\x00\x00" * 100 + client_hello())
    end = wait_raw_end(peer.sock)
    assert end
    arena.only_failure("tls_handshake_failed")


def wait_raw_end(sock: socket.socket) -> bool:
    """Whether the other side ends the connection within 3 s."""
    sock.settimeout(3)
    try:
        while sock.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True
