"""TLS 1.3 records made by hand: after an honest handshake, every record rule can be broken.

RFC 8446 sections 5 (records), 7.1 (key schedule), 7.2 and 4.6.3 (key update), 6 (alerts).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION = 20, 21, 22, 23
NEW_SESSION_TICKET, KEY_UPDATE = 4, 24
CLOSE_NOTIFY = 0
HEADER = 5
MAX_PLAINTEXT = 1 << 14


class RecordError(Exception):
    """The other side's record does not open."""


def expand_label(digest: str, secret: bytes, label: str, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 section 7.1)."""
    full = b"tls13 " + label.encode()
    info = length.to_bytes(2, "big") + bytes([len(full)]) + full + b"\0"
    out, block, counter = b"", b"", 1
    while len(out) < length:
        block = hmac.digest(secret, block + info + bytes([counter]), digest)
        out += block
        counter += 1
    return out[:length]


@dataclass(slots=True)
class Direction:
    """The keys of one direction. `suite` is OpenSSL's name; only the AES-GCM suites are known."""

    secret: bytes
    suite: str
    sequence: int = 0
    aead: AESGCM = field(init=False)
    iv: bytes = field(init=False)

    def __post_init__(self) -> None:
        self._derive()

    @property
    def digest(self) -> str:
        """The suite's hash."""
        return "sha384" if "SHA384" in self.suite else "sha256"

    def _derive(self) -> None:
        size = 32 if "AES_256" in self.suite else 16
        self.aead = AESGCM(expand_label(self.digest, self.secret, "key", size))
        self.iv = expand_label(self.digest, self.secret, "iv", 12)
        self.sequence = 0

    def update(self) -> None:
        """Next generation of keys (RFC 8446 section 7.2)."""
        size = 48 if self.digest == "sha384" else 32
        self.secret = expand_label(self.digest, self.secret, "traffic upd", size)
        self._derive()

    def _nonce(self) -> bytes:
        number = int.from_bytes(self.iv, "big") ^ self.sequence
        self.sequence += 1
        return number.to_bytes(12, "big")

    def seal(self, kind: int, payload: bytes, padding: int = 0) -> bytes:
        """One protected record: header and ciphertext. `padding` zero bytes follow the inner type."""
        inner = payload + bytes([kind]) + b"\0" * padding
        header = bytes([APPLICATION, 3, 3]) + (len(inner) + 16).to_bytes(2, "big")
        return header + self.aead.encrypt(self._nonce(), inner, header)

    def open(self, record: bytes) -> tuple[int, bytes]:
        """(inner type, payload) of one whole protected record."""
        try:
            inner = self.aead.decrypt(self._nonce(), record[HEADER:], record[:HEADER])
        except InvalidTag:
            raise RecordError("record does not authenticate") from None
        inner = inner.rstrip(b"\0")
        if not inner:
            raise RecordError("record without a type")
        return inner[-1], inner[:-1]


def alert(description: int, level: int = 2) -> bytes:
    """An alert's payload."""
    return bytes([level, description])


def key_update(*, request: bool) -> bytes:
    """A KeyUpdate handshake message."""
    return bytes([KEY_UPDATE, 0, 0, 1, int(request)])


def split_records(buffer: bytearray) -> list[bytes]:
    """Take all whole records off the front of the buffer."""
    found, at = [], 0
    while len(buffer) - at >= HEADER:
        size = HEADER + int.from_bytes(buffer[at + 3 : at + 5], "big")
        if len(buffer) - at < size:
            break
        found.append(bytes(buffer[at : at + size]))
        at += size
    del buffer[:at]
    return found


def as_plain_records(stream: bytes, piece: int) -> bytes:
    """Cut the handshake message of a single plaintext record into records of `piece` bytes each.

    What comes after the first record is kept as it is. A ClientHello may legally be cut like this.
    """
    size = int.from_bytes(stream[3:5], "big")
    message, rest = stream[HEADER : HEADER + size], stream[HEADER + size :]
    head = stream[:3]
    parts = [message[i : i + piece] for i in range(0, len(message), piece)]
    return b"".join(head + len(p).to_bytes(2, "big") + p for p in parts) + rest
