"""Many node agents in one light process: a connection and a delta stream each, which is read and acknowledged.

Run as `python -m tests.bench.control.streams PORT DATA VERSIONS COUNT [NAME]`: VERSIONS names files with what the agents
know already (`-`: nothing), NAME is what the server's certificate is for. HTTP/2 by hand, because a gRPC client for
each agent would take most of the machine. Answers are JSON lines: one when all streams stand, then one for each
line on stdin: `pushes FIRST LAST`, for every sequence number when the last stream had it; `after SECONDS`, when the
last stream heard of an address for the first time since then.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import ssl
import struct
import sys
import time
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from istiodlite.api import discovery_pb2
from istiodlite.registry import ADDRESS_TYPE, AUTHORIZATION_TYPE

PATH = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_WINDOW_SIZE = (1 << 31) - 1
_TOP_UP = 1 << 24
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: str, value: str) -> bytes:
    """A header field without indexing (RFC 7541 6.2.2), no Huffman coding."""

    def text(raw: bytes) -> bytes:
        if len(raw) < 127:
            return bytes([len(raw)]) + raw
        rest, out = len(raw) - 127, [127]
        while rest >= 128:
            out.append(rest % 128 + 128)
            rest //= 128
        return bytes([*out, rest]) + raw

    return b"\x00" + text(name.encode()) + text(value.encode())


def _message(body: bytes) -> bytes:
    return struct.pack(">BI", 0, len(body)) + body


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def head_of(body: memoryview) -> dict[int, str]:
    """Version (1), type URL (4) and nonce (5) of a DeltaDiscoveryResponse, or of its beginning; resources are passed over."""
    found: dict[int, str] = {}
    at = 0
    while at < len(body) and len(found) < 3:
        tag, at = _varint(body, at)
        size, at = _varint(body, at)
        if tag >> 3 in (1, 4, 5):
            found[tag >> 3] = bytes(body[at : at + size]).decode()
        at += size
    return found


class Stream:
    """One agent. `had` is the sequence number of the latest response, with all that came before."""

    def __init__(self, context: ssl.SSLContext, port: int, token: str, node: str, name: str) -> None:
        raw = socket.create_connection(("127.0.0.1", port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(raw, server_hostname=name)
        self.socket.setblocking(False)
        self.node = node
        self.types: set[str] = set()
        self.arrivals: list[tuple[int, float]] = []
        self.addressed = 0.0
        self._in, self._body = bytearray(), bytearray()
        self._out: list[memoryview] = []
        self._unsent = bytearray()
        self._windows = {0: 65535, 1: 65535}
        self._initial, self._largest, self._taken = 65535, 16384, 0
        fields = (
            (":method", "POST"),
            (":scheme", "https"),
            (":path", PATH),
            (":authority", name),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("authorization", f"Bearer {token}"),
        )
        settings = struct.pack(">HIHI", 4, _WINDOW_SIZE, 5, (1 << 24) - 1)
        opening = _PREFACE + _frame(_SETTINGS, 0, 0, settings)
        opening += _frame(_WINDOW, 0, 0, struct.pack(">I", _WINDOW_SIZE - 65535))
        opening += _frame(_HEADERS, 4, 1, b"".join(_literal(*one) for one in fields))
        self._unsent += opening

    def request(self, body: bytes) -> None:
        self._out.append(memoryview(_message(body)))
        self.flush()

    def flush(self) -> None:
        """Writes as much as windows and socket take."""
        while self._out:
            room = min(self._windows[0], self._windows[1], self._largest)
            if room <= 0:
                break
            piece, rest = self._out[0][:room], self._out[0][room:]
            self._unsent += _frame(_DATA, 0, 1, bytes(piece))
            for which in (0, 1):
                self._windows[which] -= len(piece)
            if rest:
                self._out[0] = rest
            else:
                del self._out[0]
        while self._unsent:
            try:
                sent = self.socket.send(self._unsent)
            except (ssl.SSLWantWriteError, BlockingIOError):
                return
            del self._unsent[:sent]

    @property
    def wants_write(self) -> bool:
        return bool(self._unsent)

    def readable(self) -> None:
        while True:
            try:
                data = self.socket.recv(1 << 16)
            except (ssl.SSLWantReadError, BlockingIOError):
                break
            if not data:
                raise SystemExit(f"{self.node}: the server closed the connection")
            self._in += data
        at = 0
        view = memoryview(bytes(self._in))
        while len(view) - at >= 9:
            size = int.from_bytes(view[at : at + 3], "big")
            if len(view) - at < 9 + size:
                break
            if view[at + 3] == _WINDOW:
                stream = int.from_bytes(view[at + 5 : at + 9], "big")
                self._windows[min(stream, 1)] += int.from_bytes(view[at + 9 : at + 13], "big")
            else:
                self._frame(view[at + 3], view[at + 4], view[at + 9 : at + 9 + size])
            at += 9 + size
        del self._in[:at]
        self.flush()

    def _frame(self, kind: int, flags: int, payload: memoryview) -> None:
        if kind == _DATA:
            self._data(payload)
        elif kind == _SETTINGS and not flags & 1:
            self._settings(payload)
        elif kind == _PING and not flags & 1:
            self._unsent += _frame(_PING, 1, 0, bytes(payload))
        elif kind in (_RST, _GOAWAY) or (kind == _HEADERS and flags & 1):
            raise SystemExit(f"{self.node}: the server ended the stream: {bytes(payload)!r}")

    def _settings(self, payload: memoryview) -> None:
        for at in range(0, len(payload), 6):
            name, value = struct.unpack(">HI", payload[at : at + 6])
            if name == 4:
                self._windows[1] += value - self._initial
                self._initial = value
            elif name == 5:
                self._largest = value
        self._unsent += _frame(_SETTINGS, 1, 0, b"")

    def _data(self, payload: memoryview) -> None:
        self._body += payload
        self._taken += len(payload)
        if self._taken > _TOP_UP:
            for stream in (0, 1):
                self._unsent += _frame(_WINDOW, 0, stream, struct.pack(">I", self._taken))
            self._taken = 0
        while len(self._body) >= 5:
            size = int.from_bytes(self._body[1:5], "big")
            if len(self._body) < 5 + size:
                return
            with memoryview(self._body) as whole, whole[5 : 5 + size] as body, body[:1024] as start:
                head = head_of(start)
                if not {4, 5} <= head.keys():
                    # istiod says them last.
                    head = head_of(body)
            del self._body[: 5 + size]
            self.types.add(head[4])
            version = head.get(1, "")
            self.arrivals.append((int(version) if version.isdecimal() else 0, time.monotonic()))
            if head[4] == ADDRESS_TYPE:
                self.addressed = self.arrivals[-1][1]
            self.request(
                discovery_pb2.DeltaDiscoveryRequest(
                    type_url=head[4], response_nonce=head[5]
                ).SerializeToString()
            )


def _node(number: int) -> Message:
    request = discovery_pb2.DeltaDiscoveryRequest()
    request.node.id = f"ztunnel~10.0.0.1~ztunnel-{number}.istio-system~istio-system.svc.cluster.local"
    request.node.metadata.update({"NODE_NAME": f"node-{number}"})
    return request


def _known(versions: str) -> list[bytes]:
    return [Path(f"{versions}.{name}").read_bytes() for name in ("addresses", "policies")]


def _nothing() -> list[bytes]:
    types = (ADDRESS_TYPE, AUTHORIZATION_TYPE)
    return [discovery_pb2.DeltaDiscoveryRequest(type_url=one).SerializeToString() for one in types]


class Streams:
    """All agents of the process, in one loop."""

    def __init__(self, port: int, data: Path, versions: str, count: int, name: str = "localhost") -> None:
        context = ssl.create_default_context(cafile=str(data / "root.pem"))
        context.set_alpn_protocols(["h2"])
        self._selector = selectors.DefaultSelector()
        self._known = _nothing() if versions == "-" else _known(versions)
        self._all: list[Stream] = []
        begin, token = time.monotonic(), (data / "token").read_text()
        for number in range(count):
            stream = Stream(context, port, token, f"node-{number}", name)
            for known in self._known:
                # Two encodings of one message, one after the other, are their merged message.
                stream.request(_node(number).SerializeToString() + known)
            self._selector.register(stream.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, stream)
            self._all.append(stream)
            # A few at a time: what a node sends first is megabytes.
            self._turn_until(lambda: sum(not self._stands(one) for one in self._all[-16:]) < 8, 60)
        self._turn_until(lambda: all(map(self._stands, self._all)), 120)
        self._say({"connected_s": time.monotonic() - begin})

    @staticmethod
    def _stands(stream: Stream) -> bool:
        return {ADDRESS_TYPE, AUTHORIZATION_TYPE} <= stream.types

    @staticmethod
    def _say(value: dict[str, Any]) -> None:
        print(json.dumps(value), flush=True)

    def _turn(self, timeout: float) -> bool:
        """One turn of the loop; False when a line waits on stdin."""
        for key, events in self._selector.select(timeout):
            stream = key.data
            if stream is None:
                return False
            if events & selectors.EVENT_READ:
                stream.readable()
            elif events & selectors.EVENT_WRITE:
                stream.flush()
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if stream.wants_write else 0)
            if wanted != key.events:
                self._selector.modify(key.fileobj, wanted, stream)
        return True

    def _turn_until(self, done: Any, limit: float) -> None:
        end = time.monotonic() + limit
        while not done():
            self._turn(0.1)
            if time.monotonic() > end:
                raise SystemExit("the streams got no answer in time")

    def serve(self) -> None:
        os.set_blocking(0, True)
        self._selector.register(0, selectors.EVENT_READ, None)
        while True:
            if self._turn(1.0):
                continue
            line = sys.stdin.readline().split()
            if not line:
                return
            self._selector.unregister(0)
            self._say(self._pushes(*line[1:]) if line[0] == "pushes" else self._after(line[1]))
            self._selector.register(0, selectors.EVENT_READ, None)

    def _pushes(self, first: str, last: str) -> dict[str, Any]:
        self._turn_until(lambda: all(one.arrivals[-1][0] >= int(last) for one in self._all), 60)
        return self._arrivals(int(first), int(last))

    def _after(self, begin: str) -> dict[str, Any]:
        self._turn_until(lambda: all(one.addressed >= float(begin) for one in self._all), 60)
        return {"last": max(one.addressed for one in self._all)}

    def _arrivals(self, first: int, last: int) -> dict[str, Any]:
        """A stream that was told of two changes at once has the first of them as late as the second."""
        out: dict[int, float] = {}
        for sequence in range(first, last + 1):
            out[sequence] = max(
                next(when for number, when in one.arrivals if number >= sequence) for one in self._all
            )
        return {"last": out, "cpu_s": time.process_time()}


if __name__ == "__main__":
    port, data, versions, count, *name = sys.argv[1:]
    Streams(int(port), Path(data), versions, int(count), *name).serve()
