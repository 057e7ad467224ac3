"""The CONNECT request of HBONE: its authority and headers, read with suspicion and written exactly.

Sources: RFC 9113 section 8.5 (CONNECT), RFC 7239 (Forwarded), W3C Trace Context level 1, and W3C
Baggage as Istio uses it (a fixed list of keys in a fixed order, values not quoted).

What decides where a connection goes (the authority) is refused unless it is exactly well-formed. What is
only told to telemetry (baggage, forwarded, traceparent) never fails a request: what cannot be read is
left out, and what is read is bounded, since it ends up in metric labels.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple, Self
from urllib.parse import quote, unquote_to_bytes

from hbone.reasons import Reason

__all__ = [
    "Authority",
    "Baggage",
    "ConnectError",
    "ConnectHeaders",
    "IPAddress",
    "SocketAddress",
    "canonical_ip",
    "format_forwarded",
    "format_traceparent",
    "parse_authority",
    "parse_baggage",
    "parse_forwarded_host",
    "parse_headers",
    "parse_traceparent",
    "request_headers",
    "response_headers",
]

IPAddress = IPv4Address | IPv6Address

MAX_AUTHORITY: Final = 253 + len(":65535")
MAX_BAGGAGE: Final = 8192
MAX_BAGGAGE_VALUE: Final = 253
MAX_BAGGAGE_ITEMS: Final = 64
MAX_FORWARDED: Final = 1024
TRACEPARENT_LENGTH: Final = 55

_PORT: Final = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_MAX_PORT: Final = 65535
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)", re.ASCII)
_IPV6_TEXT: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}", re.ASCII)
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_FORWARDED_PAIR: Final = re.compile(
    r'\s*([A-Za-z0-9!#$%&\'*+.^_`|~-]+)=(?:"((?:[^"\\]|\\.)*)"|([^";,\s]*))\s*'
)
_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


class ConnectError(ValueError):
    """A CONNECT request that must be refused; `reason` says with which slug and status."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class SocketAddress(NamedTuple):
    """An IP address and a TCP port. `of` reads text and turns ::ffff:a.b.c.d into a.b.c.d."""

    ip: IPAddress
    port: int

    @classmethod
    def of(cls, ip: str, port: int) -> Self:
        """Build from text; a bad address raises ValueError."""
        return cls(canonical_ip(ip_address(ip)), port)

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"


def canonical_ip(ip: IPAddress) -> IPAddress:
    """An IPv4 address in IPv6 clothes (::ffff:a.b.c.d) is the IPv4 address: state knows only that."""
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


@dataclass(frozen=True, slots=True)
class Authority:
    """What a CONNECT asks for: an address or a host name (lower case), and a port of 1 to 65535."""

    host: IPAddress | str
    port: int

    def __str__(self) -> str:
        if isinstance(self.host, str):
            return f"{self.host}:{self.port}"
        return str(SocketAddress(self.host, self.port))


def parse_authority(text: str) -> Authority:
    """Read `ip:port`, `[ipv6]:port` or `host:port`; anything else raises ConnectError(bad_request)."""
    if not text or len(text) > MAX_AUTHORITY or not text.isascii():
        raise ConnectError(Reason.BAD_REQUEST, f"authority of {len(text)} characters is not host:port")
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or int(port) > _MAX_PORT:
        raise ConnectError(Reason.BAD_REQUEST, f"authority {text[:80]!r} has no port of 1 to 65535")
    return Authority(_parse_host(host, text), int(port))


def _parse_host(host: str, text: str) -> IPAddress | str:
    try:
        if host.startswith("[") and host.endswith("]") and _IPV6_TEXT.fullmatch(host[1:-1]):
            return canonical_ip(IPv6Address(host[1:-1]))
        labels = host.split(".")
        if all(_LABEL.fullmatch(label) for label in labels):
            # A name that ends in a number can only be meant as an IPv4 address (WHATWG URL, host parser).
            return IPv4Address(host) if labels[-1].isdigit() else host.lower()
    except ValueError:
        pass
    raise ConnectError(Reason.BAD_REQUEST, f"authority {text[:80]!r} has no usable host")


def format_forwarded(peer: SocketAddress, host: str = "") -> str:
    """The `forwarded` header: the client's address, and the service it asked for when there was one."""
    value = f'for="{peer}"'
    return f"{value};host={host}" if host else value


def parse_forwarded_host(value: str) -> str | None:
    """The first `host` parameter, unquoted; None when there is none, or the text is not well-formed."""
    if len(value) > MAX_FORWARDED or not value.isascii():
        return None
    position = 0
    while match := _FORWARDED_PAIR.match(value, position):
        name, quoted, token = match.groups()
        if name.lower() == "host":
            host = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else token
            return host or None
        position = match.end() + 1
        if value[match.end() : position] not in (";", ","):
            return None
    return None


def format_traceparent(trace_id: bytes, span_id: bytes) -> str:
    """A `traceparent` of a new, unsampled trace from 16 and 8 random bytes."""
    return f"00-{trace_id.hex():0>32}-{span_id.hex():0>16}-00"


def parse_traceparent(value: str) -> str | None:
    """The value, if it is a well-formed version 00 `traceparent`."""
    return value if len(value) == TRACEPARENT_LENGTH and _TRACEPARENT.fullmatch(value) else None


@dataclass(frozen=True, slots=True)
class Baggage:
    """What one end says of itself to the other's telemetry. Empty: not said."""

    cluster_id: str = ""
    namespace: str = ""
    workload_type: str = ""
    workload_name: str = ""
    service_name: str = ""
    revision: str = ""
    region: str = ""
    zone: str = ""

    def __str__(self) -> str:
        """The header's value: the keys in Istio's order, empty ones left out."""
        pairs = (
            ("k8s.cluster.name", self.cluster_id),
            ("k8s.namespace.name", self.namespace),
            (f"k8s.{self.workload_type or 'deployment'}.name", self.workload_name),
            ("service.name", self.service_name),
            ("service.version", self.revision),
            ("cloud.region", self.region),
            ("cloud.availability_zone", self.zone),
        )
        # Names that Kubernetes admits are never changed by quoting; others must not break the list.
        return ",".join(f"{key}={quote(value, safe=_BAGGAGE_SAFE)}" for key, value in pairs if value)


_BAGGAGE_SAFE: Final = "!#$&'()*+-./:<>?@[]^_`{|}~"
_BAGGAGE_FIELDS: Final = {
    "k8s.cluster.name": "cluster_id",
    "k8s.namespace.name": "namespace",
    "service.name": "service_name",
    "service.version": "revision",
    "cloud.region": "region",
    "cloud.availability_zone": "zone",
}
_WORKLOAD_TYPES: Final = ("deployment", "cronjob", "pod", "job")
_WORKLOAD_KEYS: Final = {f"k8s.{kind}.name": kind for kind in _WORKLOAD_TYPES}


def parse_baggage(values: Iterable[str]) -> Baggage:
    """Read the header lines, liberally: blanks, properties and unknown keys are passed over.

    The last of equal keys wins. A value that is too long, not printable or wrongly percent-encoded is
    left out; so is everything when the lines together are longer than 8 KiB or have over 64 items.
    """
    text = ",".join(values)
    items = text.split(",", MAX_BAGGAGE_ITEMS) if len(text) <= MAX_BAGGAGE else []
    fields: dict[str, str] = {}
    for item in items if len(items) <= MAX_BAGGAGE_ITEMS else []:
        key, _, raw = item.partition("=")
        key, value = key.strip(), _baggage_value(raw)
        if key in _WORKLOAD_KEYS and value:
            fields["workload_type"], fields["workload_name"] = _WORKLOAD_KEYS[key], value
        elif key in _BAGGAGE_FIELDS:
            fields[_BAGGAGE_FIELDS[key]] = value
    return Baggage(**fields)


def _baggage_value(raw: str) -> str:
    raw = raw.partition(";")[0].strip()
    if len(raw) > 3 * MAX_BAGGAGE_VALUE or _PERCENT.search(raw):
        return ""
    try:
        value = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        return ""
    return value if len(value) <= MAX_BAGGAGE_VALUE and value.isprintable() else ""


@dataclass(frozen=True, slots=True)
class ConnectHeaders:
    """The headers of a CONNECT request that mean something here; None: absent or unreadable."""

    baggage: Baggage | None = None
    forwarded_host: str | None = None
    traceparent: str | None = None
    from_network: str | None = None


def parse_headers(headers: Iterable[tuple[str, str]]) -> ConnectHeaders:
    """Read the regular headers of a request or an answer; unknown ones are passed over.

    Of several `forwarded` lines the first host counts, of the other single headers the first line.
    """
    lines: dict[str, list[str]] = {}
    for name, value in headers:
        lines.setdefault(name, []).append(value)
    baggage = lines.get("baggage")
    network = lines.get("x-forwarded-network")
    traceparent = lines.get("traceparent")
    return ConnectHeaders(
        baggage=parse_baggage(baggage) if baggage else None,
        forwarded_host=parse_forwarded_host(",".join(lines.get("forwarded", ()))),
        traceparent=parse_traceparent(traceparent[0]) if traceparent else None,
        from_network=network[0] if network else None,
    )


def request_headers(
    source: Baggage, peer: SocketAddress, service_host: str, traceparent: str
) -> tuple[tuple[str, str], ...]:
    """The headers of an outbound CONNECT, in Istio's order. `service_host` is empty when there is none."""
    forwarded = format_forwarded(peer, service_host)
    headers = (("baggage", str(source)), ("forwarded", forwarded), ("traceparent", traceparent))
    return tuple((name, value) for name, value in headers if value)


def response_headers(destination: Baggage) -> tuple[tuple[str, str], ...]:
    """The headers of a 200 answer: who was reached."""
    value = str(destination)
    return (("baggage", value),) if value else ()
