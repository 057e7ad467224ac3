"""First inputs for the fuzzers: well-formed ones, so that they need not invent the protocol."""

from __future__ import annotations

from pathlib import Path

from hpack import Encoder

from tests.support import frames
from tests.support.frames import Setting

AUTHORITY = "10.0.0.1:80"


def _blocks(*blocks: bytes) -> bytes:
    return b"".join(len(block).to_bytes(2, "big") + block for block in blocks)


def hpack() -> list[bytes]:
    """Blocks of an encoder with a dynamic table, once with more text than it holds, and of one without."""
    encoder = Encoder()
    fields = [(":method", "CONNECT"), (":authority", AUTHORITY), ("baggage", "k8s.namespace.name=default")]
    indexed = [encoder.encode(fields) for _ in range(3)]
    around = Encoder()
    turns = [[("x-a", f"{n:02}" * 140) for n in range(3 * i, 3 * i + 6)] for i in range(8)]
    resized = Encoder()
    resized.header_table_size = 0
    return [
        _blocks(*indexed),
        _blocks(*(around.encode(turn) for turn in turns)),
        _blocks(frames.connect_block(AUTHORITY, ("x", "y" * 300))),
        _blocks(resized.encode(fields, huffman=False)),
        _blocks(b"\x3f\xe1\x1f" + indexed[0], b"\x20" + frames.literals(("a", "b"))),
    ]


def huffman() -> list[bytes]:
    """A room octet and coded text."""
    coded = Encoder().huffman_coder
    return [b"\xff" + coded.encode(text) for text in (b"www.example.com", b"", bytes(range(256)), b"0" * 50)]


def record() -> list[bytes]:
    """Suite, updates, damage, type, plaintext."""
    return [
        b"\0\0\0\x17hello",
        b"\x01\x02\0\x16" + bytes(100),
        b"\0\x01\x07\x17damaged",
        b"\x01\0\0\x15" + bytes(40),
    ]


def spiffe() -> list[bytes]:
    """Identities."""
    return [
        b"spiffe://cluster.local/ns/default/sa/web",
        b"spiffe://a/ns/b/sa/",
        b"spiffe://a/ns/../sa/.",
        b"SPIFFE://x/ns/y/sa/z",
    ]


def sessions(*, server: bool) -> list[bytes]:
    """Whole HTTP/2 conversations with a server (what clients send) or with a client (what servers send)."""
    hello = frames.PREFACE if server else b""
    hello += frames.settings({Setting.INITIAL_WINDOW_SIZE: 70_000}) + frames.settings_ack()
    block = frames.connect_block(AUTHORITY) if server else frames.literals((":status", "200"))
    opened = hello + frames.headers(1, block)
    cut = (
        hello
        + frames.headers(1, block[:5], end_headers=False)
        + frames.continuation(1, block[5:], end_headers=True)
    )
    return [
        opened + frames.data(1, b"hello") + frames.data(1, b"", end=True),
        opened + frames.data(1, b"padded", pad=20) + frames.rst(1),
        opened + frames.window_update(1, 1000) + frames.window_update(0, 1000) + frames.headers(3, block),
        cut + frames.ping() + frames.goaway(1) + frames.data(1, b"x" * 100),
        opened + frames.priority(1) + frames.frame(0xEE, 0, 0, b"?") + frames.headers(1, block, end=True),
        hello
        + frames.settings({Setting.MAX_FRAME_SIZE: 20_000, Setting.HEADER_TABLE_SIZE: 0})
        + frames.ping(ack=True),
    ]


RECORD, ROUND = 1, 14
DATA, TIME, PEER, WRITE, READ, END, VERDICT, CONNECT, DRAIN = (
    0,
    3,
    4,
    5,
    6,
    7,
    9,
    10,
    11,
)  # as in fuzz_frames.c


def _data(octets: bytes) -> bytes:
    return bytes([DATA]) + len(octets).to_bytes(2, "big") + octets


def frames_() -> list[bytes]:
    """Sessions with a server (role 0) and with a client (role 1), with the owner's and applications' part."""
    deliver, tunnel, refuse = bytes([VERDICT, 10]), bytes([VERDICT, 100]), bytes([VERDICT, 250])
    app = bytes([WRITE, 0, 3, READ, 0, PEER, END, 0, PEER])
    found = []
    key_update = bytes([RECORD, 22, 0, 5, 24, 0, 0, 1, 1])  # asks for one in return, while our socket is full
    full = (
        bytes([WRITE, 0, 255, ROUND]) * 3 + key_update + bytes([WRITE, 0, 3, PEER, PEER, PEER]) + key_update
    )
    for octets in sessions(server=True):
        found.append(b"\0" + _data(octets) + deliver + full)
        at = octets.index(frames.PREFACE) + len(frames.PREFACE) + 30
        found.append(b"\0" + _data(octets[:at]) + deliver + _data(octets[at:]) + deliver + app)
        found.append(b"\0" + b"".join(_data(octets[i : i + 7]) for i in range(0, len(octets), 7)) + refuse)
        found.append(b"\0" + _data(octets) + deliver + bytes([DRAIN, TIME, 100]) + app)
    for octets in sessions(server=False):
        found.append(
            b"\1"
            + tunnel
            + bytes([14, 14])
            + _data(octets)
            + bytes([WRITE, 0, 3, PEER, READ, 0, END, 0, PEER])
        )
        found.append(
            b"\3"
            + tunnel
            + bytes([CONNECT])
            + tunnel
            + bytes([14])
            + _data(octets)
            + bytes([TIME, 200, PEER])
        )
    return found


GENERATORS = {
    "frames": frames_,
    "hpack": hpack,
    "huffman": huffman,
    "memory": frames_,
    "record": record,
    "spiffe": spiffe,
}


def write(name: str, folder: Path) -> None:
    """Write a target's seeds into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, octets in enumerate(GENERATORS[name]() if name in GENERATORS else []):
        (folder / f"seed-{number}").write_bytes(octets)
