"""HTTP/2 frames by hand: right ones, and wrong ones on purpose (RFC 9113, RFC 7541)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hpack import Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Type(enum.IntEnum):
    """Frame types (RFC 9113 section 6)."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Code(enum.IntEnum):
    """Error codes (RFC 9113 section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Setting(enum.IntEnum):
    """Settings (RFC 9113 section 6.5.2)."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6
    ENABLE_CONNECT_PROTOCOL = 8


END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY_FLAG = 0x1, 0x1, 0x4, 0x8, 0x20


@dataclass(frozen=True, slots=True)
class Frame:
    """One received frame."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def ends_stream(self) -> bool:
        """END_STREAM on a frame that can carry it."""
        return self.kind in (Type.DATA, Type.HEADERS) and bool(self.flags & END_STREAM)

    @property
    def code(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        at = 4 if self.kind == Type.GOAWAY else 0
        return int.from_bytes(self.payload[at : at + 4], "big")

    @property
    def last_stream(self) -> int:
        """GOAWAY's last stream id."""
        return int.from_bytes(self.payload[:4], "big") & 0x7FFFFFFF

    @property
    def settings(self) -> dict[int, int]:
        """SETTINGS entries; the last one of each wins."""
        pairs = struct.iter_unpack("!HI", self.payload)
        return dict(pairs)

    @property
    def increment(self) -> int:
        """WINDOW_UPDATE's increment."""
        return int.from_bytes(self.payload[:4], "big") & 0x7FFFFFFF


def frame(
    kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", *, length: int | None = None
) -> bytes:
    """Any frame at all. `length` lies about the payload's size."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + (stream & 0xFFFFFFFF).to_bytes(4, "big") + payload


def data(stream: int, payload: bytes = b"", *, end: bool = False, pad: int | None = None) -> bytes:
    """DATA, padded when `pad` is not None (0 is a legal pad length)."""
    flags = END_STREAM if end else 0
    if pad is not None:
        flags |= PADDED
        payload = bytes([pad]) + payload + b"\0" * pad
    return frame(Type.DATA, flags, stream, payload)


def headers(stream: int, block: bytes, *, end: bool = False, end_headers: bool = True) -> bytes:
    """HEADERS with a block that is already encoded."""
    flags = (END_STREAM if end else 0) | (END_HEADERS if end_headers else 0)
    return frame(Type.HEADERS, flags, stream, block)


def continuation(stream: int, block: bytes = b"", *, end_headers: bool = False) -> bytes:
    """CONTINUATION."""
    return frame(Type.CONTINUATION, END_HEADERS if end_headers else 0, stream, block)


def settings(values: Mapping[Setting, int] | Mapping[int, int] | Iterable[tuple[int, int]] = ()) -> bytes:
    """SETTINGS; a list of pairs may repeat itself."""
    pairs = values.items() if isinstance(values, Mapping) else values
    return frame(Type.SETTINGS, 0, 0, b"".join(struct.pack("!HI", k, v) for k, v in pairs))


def settings_ack() -> bytes:
    """The acknowledgement of SETTINGS."""
    return frame(Type.SETTINGS, ACK)


def ping(payload: bytes = b"\0" * 8, *, ack: bool = False) -> bytes:
    """PING."""
    return frame(Type.PING, ACK if ack else 0, 0, payload)


def rst(stream: int, code: int = Code.CANCEL) -> bytes:
    """RST_STREAM."""
    return frame(Type.RST_STREAM, 0, stream, struct.pack("!I", code))


def goaway(last: int = 0, code: int = Code.NO_ERROR, debug: bytes = b"") -> bytes:
    """GOAWAY."""
    return frame(Type.GOAWAY, 0, 0, struct.pack("!II", last, code) + debug)


def window_update(stream: int, increment: int) -> bytes:
    """WINDOW_UPDATE; an increment of 0 or with the reserved bit is sent as asked."""
    return frame(Type.WINDOW_UPDATE, 0, stream, struct.pack("!I", increment))


def priority(stream: int, depends: int = 0, weight: int = 15) -> bytes:
    """PRIORITY."""
    return frame(Type.PRIORITY, 0, stream, struct.pack("!IB", depends, weight))


def push_promise(stream: int, promised: int, block: bytes) -> bytes:
    """PUSH_PROMISE."""
    return frame(Type.PUSH_PROMISE, END_HEADERS, stream, struct.pack("!I", promised) + block)


def literal(name: bytes, value: bytes) -> bytes:
    """One HPACK field without indexing, no Huffman, any octets at all (RFC 7541 section 6.2.2)."""
    return b"\x00" + _integer(len(name), 7) + name + _integer(len(value), 7) + value


def literals(*fields: tuple[bytes | str, bytes | str]) -> bytes:
    """A header block in exactly this order, with exactly these octets."""
    return b"".join(literal(_octets(name), _octets(value)) for name, value in fields)


def connect_block(authority: str, *extra: tuple[str, str], encoder: Encoder | None = None) -> bytes:
    """The header block of an ordinary CONNECT; stateless unless an encoder is given."""
    fields = [(":method", "CONNECT"), (":authority", authority), *extra]
    return encoder.encode(fields) if encoder else literals(*fields)


def _octets(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def _integer(value: int, bits: int) -> bytes:
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([value])
    out, value = bytearray([limit]), value - limit
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


class FrameReader:
    """Frames out of a byte stream."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def feed(self, chunk: bytes) -> list[Frame]:
        """Whole frames so far."""
        self.buffer += chunk
        found = []
        while len(self.buffer) >= 9:
            size = int.from_bytes(self.buffer[:3], "big")
            if len(self.buffer) < 9 + size:
                break
            kind, flags = self.buffer[3], self.buffer[4]
            stream = int.from_bytes(self.buffer[5:9], "big") & 0x7FFFFFFF
            found.append(Frame(kind, flags, stream, bytes(self.buffer[9 : 9 + size])))
            del self.buffer[: 9 + size]
        return found
