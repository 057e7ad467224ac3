"""What was seen on a link: tcpdump in a network namespace, and its capture file read back.

Reading is pure: `segments` takes the bytes of a pcap file (classic format, Ethernet) and yields TCP
segments.
"""

import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import TracebackType

ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, TCP = 1, 0x0800, 0x86DD, 6
FILE_HEADER, RECORD_HEADER = 24, 16
SYN, ACK = 0x02, 0x10


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment as captured: addresses, ports, flags and payload."""

    source: IPv4Address | IPv6Address
    source_port: int
    destination: IPv4Address | IPv6Address
    destination_port: int
    flags: int
    payload: bytes

    @property
    def service_port(self) -> int:
        """The lower port: the server's, as clients use ephemeral ones."""
        return min(self.source_port, self.destination_port)

    @property
    def flow(self) -> tuple[object, ...]:
        """Key of this direction of the connection."""
        return (self.source, self.source_port, self.destination, self.destination_port)


def segments(capture: bytes) -> Iterator[Segment]:
    """TCP segments of a pcap file; other packets are passed over, a cut last record ends the reading."""
    order = "<" if capture[:4] == b"\xd4\xc3\xb2\xa1" else ">"
    if len(capture) >= FILE_HEADER and struct.unpack_from(order + "I", capture, 20)[0] & 0xFFFF != ETHERNET:
        raise ValueError("the capture is not of an Ethernet link")
    at = FILE_HEADER
    while at + RECORD_HEADER <= len(capture):
        length = struct.unpack_from(order + "I", capture, at + 8)[0]
        frame = capture[at + RECORD_HEADER : at + RECORD_HEADER + length]
        at += RECORD_HEADER + length
        if len(frame) == length and (segment := _ethernet(frame)):
            yield segment


def _ethernet(frame: bytes) -> Segment | None:
    if len(frame) < 14:
        return None
    kind, packet = struct.unpack_from("!H", frame, 12)[0], frame[14:]
    if kind == ETHERTYPE_IPV4 and len(packet) >= 20 and packet[9] == TCP:
        header, total = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0]
        return _tcp(packet[12:16], packet[16:20], packet[header : total or None])
    if kind == ETHERTYPE_IPV6 and len(packet) >= 40 and packet[6] == TCP:
        length = struct.unpack_from("!H", packet, 4)[0]
        return _tcp(packet[8:24], packet[24:40], packet[40 : 40 + length if length else None])
    return None


def _tcp(source: bytes, destination: bytes, segment: bytes) -> Segment | None:
    if len(segment) < 20:
        return None
    source_port, destination_port = struct.unpack_from("!HH", segment)
    offset = (segment[12] >> 4) * 4
    return Segment(
        ip_address(source),
        source_port,
        ip_address(destination),
        destination_port,
        segment[13],
        segment[offset:],
    )


def begins_like_tls(seen: Iterable[Segment]) -> list[Segment]:
    """First payloads of new connections (SYN was captured) that are not a TLS handshake record."""
    opened: set[tuple[object, ...]] = set()
    wrong = []
    for segment in seen:
        if segment.flags & SYN:
            opened.add(segment.flow)
        elif segment.payload and segment.flow in opened:
            opened.remove(segment.flow)
            if segment.payload[:2] != b"\x16\x03":
                wrong.append(segment)
    return wrong


class Tap:
    """tcpdump on one interface of a network namespace, for as long as the `with` block lasts."""

    def __init__(self, netns: str, interface: str) -> None:
        self._file = Path(tempfile.mkstemp(prefix="ambient-demo-", suffix=".pcap")[1])
        self._command = ["ip", "netns", "exec", netns, "tcpdump", "-i", interface, "-s", "0", "-U", "-n"]
        self._command += ["-B", "16384", "--immediate-mode", "-Z", "root", "-w", str(self._file)]
        self._process: subprocess.Popen[bytes] | None = None
        self.capture = b""

    def __enter__(self) -> "Tap":
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if b"listening on" in line:
                return self
        raise RuntimeError(f"tcpdump did not start on {self._command[6]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        time.sleep(0.2)  # packets of the last exchange are still on their way through the capture buffer
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=10)
        self.capture = self._file.read_bytes()
        self._file.unlink()

    def segments(self) -> list[Segment]:
        """The TCP segments captured, in order; only after the block."""
        return list(segments(self.capture))
