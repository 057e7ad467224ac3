"""What the engine tells its owner, as values.

A flow is one captured connection or one CONNECT stream. Its life as events, in order:
`Accepted`, `ConnectRequested` or `Admitted`, perhaps `Established`, and exactly one `Closed`; or `Finished` alone.
`reason_code` indexes `hbone.engine.REASONS`; 0 is "ok". `at` is when it happened, in seconds of `time.monotonic()`:
events may be taken a little later.

Named tuples: several are made for each connection, and no other immutable record is made as quickly.
"""

import enum
from typing import NamedTuple, TypeAlias

Address: TypeAlias = tuple[str, int]
"""(IP address as text, port). IPv4-mapped IPv6 addresses arrive as plain IPv4."""

Headers: TypeAlias = tuple[tuple[str, str], ...]
"""Header fields in wire order, pseudo-header fields left out; values decoded as Latin-1."""


class ListenerKind(enum.IntEnum):
    """What stands behind a listening socket."""

    OUTBOUND = 0
    """Plaintext captured on its way out of a pod; the local address is the original destination."""
    INBOUND = 1
    """Plaintext captured on its way into a pod."""
    HBONE = 2
    """mTLS with HTTP/2 CONNECT."""


class Accepted(NamedTuple):
    """A captured plaintext connection waits for a verdict."""

    token: int
    tag: int
    kind: ListenerKind
    peer: Address
    local: Address
    at: float = 0.0


class ConnectRequested(NamedTuple):
    """A CONNECT stream waits for a verdict. `local` is what the tunnel's TCP connection was made to."""

    token: int
    tag: int
    tunnel: int
    peer: Address
    local: Address
    peer_identity: str
    method: str
    authority: str
    headers: Headers
    at: float = 0.0


class Established(NamedTuple):
    """Both legs are up: bytes flow.

    `peer_identity` is the verified URI SAN of the tunnel's other end, None for plain TCP. `local` and
    `remote` are the addresses of the onward socket (of the tunnel's socket, for a tunnel).
    `response_headers` are those of the peer's 200.
    """

    token: int
    peer_identity: str | None
    local: Address | None
    remote: Address | None
    response_headers: Headers


class Closed(NamedTuple):
    """The last event of a token. `status` is the HTTP status sent or received (0: none), `errno` the
    operating system's error behind it (0: none)."""

    token: int
    reason_code: int
    status: int
    errno: int
    bytes_from_client: int
    bytes_to_client: int
    established: bool
    at: float = 0.0


class TunnelFailed(NamedTuple):
    """A handshake or protocol failure of a whole tunnel. The engine limits their rate and counts all."""

    tag: int
    peer: Address | None
    inbound: bool
    reason_code: int
    detail: str


class TunnelOpened(NamedTuple):
    """A tunnel's handshake is done (only with `EngineConfig.tunnel_events`)."""

    tag: int
    tunnel: int
    inbound: bool
    peer: Address | None
    local: Address | None
    peer_identity: str


class TunnelClosed(NamedTuple):
    """A tunnel ended (only with `EngineConfig.tunnel_events`, for tunnels that were opened)."""

    tunnel: int
    reason_code: int


class Defect(NamedTuple):
    """The engine was about to do what its own tables of states do not have. The flow or tunnel ends with the reason
    `internal`; nothing else does. The engine limits their rate and counts all (`defects`)."""

    tag: int
    detail: str


class Admitted(NamedTuple):
    """A connection went the way of a kept verdict, `verdict` being its number; `peer` as in `Accepted`. In the place
    of `Accepted` or `ConnectRequested`, and of `Established` if that had happened already. `Closed` follows."""

    token: int
    verdict: int
    tag: int
    peer: Address
    at: float
    established: bool


class Finished(NamedTuple):
    """`Admitted` and `Closed` in one: a short connection. `at` is its beginning, `ended` its end."""

    token: int
    verdict: int
    tag: int
    peer: Address
    at: float
    reason_code: int
    status: int
    errno: int
    bytes_from_client: int
    bytes_to_client: int
    established: bool
    ended: float


class Forgotten(NamedTuple):
    """One worker will name no verdict any more that was kept in `epoch` or before. Each worker says so."""

    epoch: int


Event: TypeAlias = (
    Accepted
    | ConnectRequested
    | Established
    | Closed
    | TunnelFailed
    | TunnelOpened
    | TunnelClosed
    | Defect
    | Admitted
    | Finished
    | Forgotten
)
