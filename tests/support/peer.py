"""A TLS + HTTP/2 peer that does what it is told, right or wrong, and notes what comes back.

The handshake is Python's ssl over memory; afterwards the records are our own (`tls13`), so a test decides
about every octet. One thread, blocking with deadlines.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpack import Decoder, Encoder

from tests.support import frames, tls13
from tests.support.frames import Code, Frame, FrameReader, Setting, Type
from tests.support.pki import Credential, load_chain, unverified_context

DEADLINE = 30.0


class Refused(Exception):
    """The other side ended the connection before the handshake was done; the text says how."""


@dataclass(slots=True)
class Ending:
    """How a connection ended, as the peer saw it."""

    how: str = "open"  # open | close_notify | fin | reset | alert
    alert: int | None = None
    goaway: int | None = None  # error code of the last GOAWAY
    frames: list[Frame] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def closed(self) -> bool:
        """The transport is gone."""
        return self.how != "open"


def _sealed_early(tls: ssl.SSLObject, keylog: str, octets: bytes) -> bytes:
    """A server's first record of application data."""
    secret = next(
        line.split()[2] for line in keylog.splitlines() if line.startswith("SERVER_TRAFFIC_SECRET_0")
    )
    cipher = tls.cipher()
    assert cipher is not None
    return tls13.Direction(bytes.fromhex(secret), cipher[0]).seal(tls13.APPLICATION, octets)


class Peer:
    """One end of a connection. `server` tells which half of the handshake it played."""

    def __init__(self, sock: socket.socket, *, server: bool) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.server = server
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.reader = FrameReader()
        self.received: list[Frame] = []  # everything, in order
        self.pending: list[Frame] = []  # not yet looked at by `expect`
        self.polite = True  # acknowledge SETTINGS and PING
        self.generous = False  # give back DATA credit at once
        self.started = False  # our own SETTINGS have to be the first frame
        self.ending = Ending()
        self.alpn: str | None = None
        self.peer_certificate: bytes | None = None
        self.key_updates = 0
        self.tickets: list[bytes] = []
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._next_stream = 1
        self._read_keys: tls13.Direction | None = None
        self._write_keys: tls13.Direction | None = None

    # -- making one

    @classmethod
    def dial(
        cls,
        address: tuple[str, int],
        credential: Credential | None,
        *,
        alpn: Iterable[str] = ("h2",),
        context: ssl.SSLContext | None = None,
        timeout: float = DEADLINE,
        source: str | None = None,
        reshape: Callable[[bytes], bytes] | None = None,
    ) -> Peer:
        """Connect and shake hands as the client. `reshape` may rewrite the first flight (ClientHello)."""
        peer = cls.dial_raw(address, timeout=timeout, source=source)
        try:
            peer.shake_hands(credential, alpn=alpn, context=context, timeout=timeout, reshape=reshape)
        except BaseException:
            peer.close()
            raise
        return peer

    @classmethod
    def dial_raw(
        cls, address: tuple[str, int], *, timeout: float = DEADLINE, source: str | None = None
    ) -> Peer:
        """Only the TCP connection."""
        bind = (source, 0) if source else None
        return cls(socket.create_connection(address, timeout=timeout, source_address=bind), server=False)

    @classmethod
    def accept(
        cls,
        listener: socket.socket,
        credential: Credential,
        *,
        alpn: Iterable[str] = ("h2",),
        context: ssl.SSLContext | None = None,
        timeout: float = DEADLINE,
        early: bytes = b"",
    ) -> Peer:
        """Take one connection and shake hands as the server. `early` it says behind its own part of the handshake,
        before the client has finished (RFC 8446 4.4.4 allows that)."""
        listener.settimeout(timeout)
        sock, _ = listener.accept()
        peer = cls(sock, server=True)
        try:
            peer.shake_hands(credential, alpn=alpn, context=context, timeout=timeout, early=early)
        except BaseException:
            peer.close()
            raise
        return peer

    def shake_hands(
        self,
        credential: Credential | None,
        *,
        alpn: Iterable[str] = ("h2",),
        context: ssl.SSLContext | None = None,
        timeout: float = DEADLINE,
        reshape: Callable[[bytes], bytes] | None = None,
        early: bytes = b"",
    ) -> None:
        """The TLS handshake. Raises Refused when the other side does not want it."""
        context = context or self._context(credential, alpn)
        deadline = time.monotonic() + timeout
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "keys"
            context.keylog_filename = str(log)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing, server_side=self.server)
            while True:
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    if early and outgoing.pending and "SERVER_TRAFFIC" in log.read_text():
                        outgoing.write(_sealed_early(tls, log.read_text(), early))
                    self._handshake_flush(outgoing, reshape, deadline)
                    reshape = None
                    chunk = self._handshake_read(deadline)
                    incoming.write(chunk)
                except ssl.SSLError as problem:
                    with contextlib.suppress(OSError, Refused):
                        self._handshake_flush(outgoing, None, deadline)
                    raise Refused(problem.reason or str(problem)) from None
                else:
                    break
            self._handshake_flush(outgoing, None, deadline)
            self._adopt(tls, log.read_text())
        self.alpn = tls.selected_alpn_protocol()
        self.peer_certificate = tls.getpeercert(binary_form=True)
        self._take(incoming.read())

    def _context(self, credential: Credential | None, alpn: Iterable[str]) -> ssl.SSLContext:
        context = unverified_context(server=self.server, alpn=tuple(alpn))
        if credential:
            load_chain(context, credential)
            if self.server:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(cadata=credential.roots_pem.decode())
        return context

    def _handshake_flush(
        self, outgoing: ssl.MemoryBIO, reshape: Callable[[bytes], bytes] | None, deadline: float
    ) -> None:
        flight = outgoing.read()
        if flight:
            try:
                self.send_raw(reshape(flight) if reshape else flight, timeout=deadline - time.monotonic())
            except OSError as problem:
                raise Refused(f"while sending: {problem}") from None

    def _handshake_read(self, deadline: float) -> bytes:
        ready, _, _ = select.select([self.sock], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise Refused("timeout")
        try:
            chunk = self.sock.recv(1 << 16)
        except OSError as problem:
            raise Refused(f"reset: {problem}") from None
        if not chunk:
            raise Refused("closed")
        return chunk

    def _adopt(self, tls: ssl.SSLObject, keylog: str) -> None:
        lines = [line.split() for line in keylog.splitlines() if line and not line.startswith("#")]
        secrets = {label: bytes.fromhex(secret) for label, _, secret in lines}
        cipher = tls.cipher()
        assert cipher is not None
        if "CLIENT_TRAFFIC_SECRET_0" not in secrets:
            raise Refused(f"not TLS 1.3 but {cipher[1]}")
        mine, theirs = "CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"
        if self.server:
            mine, theirs = theirs, mine
        self._write_keys = tls13.Direction(secrets[mine], cipher[0])
        self._read_keys = tls13.Direction(secrets[theirs], cipher[0])

    # -- sending

    def send_raw(self, octets: bytes, *, timeout: float = DEADLINE, deaf: bool = False) -> None:
        """Octets straight to TCP, reading meanwhile (unless deaf) so that nobody waits for the other."""
        deadline = time.monotonic() + timeout
        self._outgoing += octets
        while self._outgoing:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{len(self._outgoing)} octets not taken")
            readable = [] if deaf or self._read_keys is None else [self.sock]
            ready, writable, _ = select.select(readable, [self.sock], [], left)
            if ready:
                self._receive()
                if self.ending.how in ("fin", "reset"):
                    self._outgoing.clear()
                    raise ConnectionResetError(self.ending.how)
            if writable:
                try:
                    sent = self.sock.send(self._outgoing[: 1 << 18])
                except BlockingIOError:
                    continue
                except OSError:
                    self._outgoing.clear()
                    raise
                del self._outgoing[:sent]

    def seal(self, octets: bytes, *, record_size: int = tls13.MAX_PLAINTEXT) -> bytes:
        """Application data as records."""
        return b"".join(
            self.write_keys.seal(tls13.APPLICATION, octets[i : i + record_size])
            for i in range(0, len(octets), record_size)
        )

    def send(self, *octets: bytes, timeout: float = DEADLINE, deaf: bool = False) -> None:
        """HTTP/2 octets."""
        self.send_raw(self.seal(b"".join(octets)), timeout=timeout, deaf=deaf)

    @property
    def write_keys(self) -> tls13.Direction:
        """Our sending direction, to seal by hand."""
        assert self._write_keys is not None, "no handshake yet"
        return self._write_keys

    def send_record(self, kind: int, payload: bytes, padding: int = 0) -> None:
        """One record of any inner type."""
        self.send_raw(self.write_keys.seal(kind, payload, padding))

    def update_keys(self, *, request: bool = False) -> None:
        """Change our sending keys."""
        self.send_record(tls13.HANDSHAKE, tls13.key_update(request=request))
        self.write_keys.update()

    def flood(self, pieces: Iterable[bytes], *, timeout: float = 20.0, deaf: bool = False) -> int:
        """Send piece after piece until they are all out or the other side ends it; how many went out."""
        deadline, count = time.monotonic() + timeout, 0
        batch: list[bytes] = []
        try:
            for piece in pieces:
                batch.append(piece)
                count += 1
                if len(batch) >= 64:
                    self.send(*batch, timeout=deadline - time.monotonic(), deaf=deaf)
                    batch.clear()
                    if self.ending.closed or self.ending.goaway is not None:
                        return count
            if batch:
                self.send(*batch, timeout=deadline - time.monotonic(), deaf=deaf)
        except OSError:
            pass
        return count

    # -- receiving

    def _receive(self) -> bool:
        """One recv; False when nothing can come any more."""
        try:
            chunk = self.sock.recv(1 << 18)
        except BlockingIOError:
            return True
        except OSError:
            if not self.ending.closed or self.ending.how == "close_notify":
                self.ending.how = "reset" if not self.ending.closed else self.ending.how
            return False
        if not chunk:
            if not self.ending.closed:
                self.ending.how = "fin"
            return False
        self._take(chunk)
        return True

    def _take(self, chunk: bytes) -> None:
        self._incoming += chunk
        for record in tls13.split_records(self._incoming):
            if record[0] == tls13.CHANGE_CIPHER_SPEC:
                continue
            assert self._read_keys is not None
            kind, payload = self._read_keys.open(record)
            if kind == tls13.APPLICATION:
                self._take_frames(payload)
            elif kind == tls13.ALERT:
                self.ending.alert = payload[1]
                self.ending.how = "close_notify" if payload[1] == tls13.CLOSE_NOTIFY else "alert"
            elif payload[:1] == bytes([tls13.NEW_SESSION_TICKET]):
                self.tickets.append(payload)
            elif payload[:1] == bytes([tls13.KEY_UPDATE]):
                self.key_updates += 1
                self._read_keys.update()
                if payload[4] and self.polite:
                    self.update_keys()

    def _take_frames(self, payload: bytes) -> None:
        for got in self._without_preface(payload):
            self.received.append(got)
            self.pending.append(got)
            if got.kind == Type.GOAWAY:
                self.ending.goaway = got.code
            if self.polite and self.started:
                self._be_polite(got)

    def _without_preface(self, payload: bytes) -> list[Frame]:
        if not self.server or self.received:
            return self.reader.feed(payload)
        buffered = bytes(self.reader.buffer) + payload
        self.reader.buffer.clear()
        if len(buffered) < len(frames.PREFACE):
            self.reader.buffer += buffered
            return []
        return self.reader.feed(buffered.removeprefix(frames.PREFACE))

    def _be_polite(self, got: Frame) -> None:
        answer = b""
        if got.kind == Type.SETTINGS and not got.flags & frames.ACK:
            answer = frames.settings_ack()
        elif got.kind == Type.PING and not got.flags & frames.ACK:
            answer = frames.ping(got.payload, ack=True)
        elif got.kind == Type.DATA and self.generous and got.payload:
            answer = frames.window_update(0, len(got.payload))
            if not got.ends_stream:
                answer += frames.window_update(got.stream, len(got.payload))
        if answer:
            self._outgoing += self.seal(answer)
            with contextlib.suppress(OSError):
                sent = self.sock.send(self._outgoing)
                del self._outgoing[:sent]

    def pump(self, seconds: float) -> bool:
        """Read whatever comes for so long, at most one recv; False at the end of the stream."""
        wants = [self.sock] if self._outgoing else []
        ready, writable, _ = select.select([self.sock], wants, [], max(0.0, seconds))
        if writable:
            with contextlib.suppress(OSError):
                sent = self.sock.send(self._outgoing)
                del self._outgoing[:sent]
        return self._receive() if ready else True

    def expect(
        self,
        kind: int,
        stream: int | None = None,
        *,
        where: Callable[[Frame], bool] = lambda _: True,
        timeout: float = DEADLINE,
    ) -> Frame:
        """The next frame of this kind (and stream); others before it are passed over, not forgotten."""
        deadline = time.monotonic() + timeout
        while True:
            for at, got in enumerate(self.pending):
                if got.kind == kind and stream in (None, got.stream) and where(got):
                    del self.pending[: at + 1]
                    return got
            left = deadline - time.monotonic()
            if left <= 0 or not self.pump(left):
                seen = [
                    f"{Type(f.kind).name if f.kind < 10 else f.kind}({f.stream})" for f in self.received[-8:]
                ]
                raise AssertionError(
                    f"no {Type(kind).name} on stream {stream} within {timeout:g} s; connection {self.ending.how}, "
                    f"GOAWAY {self.ending.goaway}, last frames {seen}"
                )

    def wait_end(self, timeout: float = DEADLINE) -> Ending:
        """Read until the transport ends (or the deadline passes: `how` stays "open")."""
        start = time.monotonic()
        while time.monotonic() - start < timeout and self.pump(timeout - (time.monotonic() - start)):
            pass
        self.ending.frames = list(self.received)
        self.ending.seconds = time.monotonic() - start
        return self.ending

    # -- HTTP/2 manners

    def start(
        self,
        settings: Mapping[Setting, int] | Mapping[int, int] | None = None,
        *,
        window: int = 0,
        timeout: float = DEADLINE,
    ) -> dict[int, int]:
        """Preface and SETTINGS both ways; gives the other side's settings."""
        hello = b"" if self.server else frames.PREFACE
        hello += frames.settings(settings or {})
        if window:
            hello += frames.window_update(0, window)
        self.send(hello)
        self.started = True
        for early in self.received:
            if self.polite:
                self._be_polite(early)
        got = self.expect(Type.SETTINGS, where=lambda f: not f.flags & frames.ACK, timeout=timeout)
        return got.settings

    def next_stream(self) -> int:
        """A stream id this client has not used yet."""
        stream = self._next_stream
        self._next_stream += 2
        return stream

    def request(self, authority: str, *extra: tuple[str, str], end: bool = False) -> int:
        """Send an ordinary CONNECT; the stream's id."""
        stream = self.next_stream()
        block = frames.connect_block(authority, *extra, encoder=self.encoder)
        self.send(frames.headers(stream, block, end=end))
        return stream

    def fields(self, got: Frame) -> dict[str, str]:
        """Decode a HEADERS frame without padding or CONTINUATION."""
        decoded = self.decoder.decode(got.payload)
        return {_text(name): _text(value) for name, value in decoded}

    def status(self, stream: int, timeout: float = DEADLINE) -> int:
        """The status that answers a CONNECT."""
        return int(self.fields(self.expect(Type.HEADERS, stream, timeout=timeout))[":status"])

    def tunnel(self, authority: str, *extra: tuple[str, str]) -> int:
        """A CONNECT that must succeed; the stream's id."""
        stream = self.request(authority, *extra)
        assert self.status(stream) == 200
        return stream

    def read_exactly(self, stream: int, size: int, timeout: float = DEADLINE) -> bytes:
        """So many octets of DATA of one stream."""
        got = b""
        while len(got) < size:
            got += self.expect(Type.DATA, stream, timeout=timeout).payload
        return got

    def echo(self, stream: int, payload: bytes, timeout: float = DEADLINE) -> None:
        """Send it; the same must come back."""
        self.send(frames.data(stream, payload))
        assert self.read_exactly(stream, len(payload), timeout) == payload

    def expect_rst(self, stream: int, code: Code | int | None = None, timeout: float = DEADLINE) -> int:
        """RST_STREAM on this stream, with this code."""
        got = self.expect(Type.RST_STREAM, stream, timeout=timeout)
        if code is not None:
            assert got.code == code, f"RST_STREAM with {Code(got.code).name}, expected {Code(code).name}"
        return got.code

    # -- the end

    def close_notify(self) -> None:
        """A proper end of our direction."""
        self.send_record(tls13.ALERT, tls13.alert(tls13.CLOSE_NOTIFY, level=1))

    def fin(self) -> None:
        """End our direction of TCP without a word of TLS."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Abort the TCP connection."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Leave."""
        self.sock.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
