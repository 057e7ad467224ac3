"""The byte engine: accepts, dials and relays; its owner decides.

Data in: listening sockets, network namespaces, identities (certificates), one verdict for each flow.
Data out: events (`hbone.engine.events`), byte counters, statistics. Bytes of connections never enter Python:
worker threads written in C move them without the GIL. This package knows no pods and no policy.

Use: wait until `Engine.event_fd` is readable, `take()` events, give each `Accepted`/`ConnectRequested` its
verdict (`connect_plain`, `connect_tunnel` or `refuse`), then `flush()` once.

What the engine does by itself:

- TLS 1.3 (AES-GCM), ALPN h2, certificates on both sides; a peer needs a valid chain, the right purpose and
  exactly one URI name, a SPIFFE one: on the list of `sans` (client), or of an accepted trust domain (server).
- HTTP/2 CONNECT: answers 400 to what is no CONNECT or breaks RFC 9113 section 8.5, resets malformed streams,
  ends connections that break the protocol or overdraw a budget (`peer_abuse`; `stats()["abuse_..."]` says which).
- A CONNECT is answered 200 only when the onward connection stands, 503 when it fails.
- Half-close passes in every order; a reset is passed on as a reset; a tunnel that ends without close_notify
  resets its flows (`truncated`).
- Tunnels are pooled for each worker; all who wait share a dial; an unanswered CONNECT of a tunnel that turned
  out dead, or was refused as unprocessed, is tried again on another one.
- Memory is bounded by windows, for each stream, tunnel and queue; credit for a connection is given on receipt,
  so that slow readers do not stop others.
- Every wait has a deadline (`EngineConfig`), every end a reason, every token exactly one `Closed`.

A CONNECT stream may be given `connect_tunnel` as well (gateways, waypoints): bytes then pass from tunnel to tunnel
through a pair of local sockets, and every such flow counts twice in `flows_live` and against `max_flows`.
The C core (`engine.h`) compiles without Python; `state.h` explains its structures.
"""

import enum
import errno
import itertools
from collections.abc import Sequence
from typing import Any

from hbone import _engine
from hbone.engine.config import EngineConfig
from hbone.engine.events import (
    Accepted,
    Address,
    Admitted,
    Closed,
    ConnectRequested,
    Defect,
    Established,
    Event,
    Finished,
    Forgotten,
    Headers,
    ListenerKind,
    TunnelClosed,
    TunnelFailed,
    TunnelOpened,
)
from hbone.reasons import Reason

__all__ = [
    "CLIENT",
    "RANDOM",
    "REASONS",
    "Accepted",
    "Address",
    "Admitted",
    "Closed",
    "ConnectRequested",
    "Defect",
    "Engine",
    "EngineConfig",
    "Established",
    "Event",
    "Finished",
    "Forgotten",
    "Headers",
    "Kept",
    "ListenerKind",
    "TunnelClosed",
    "TunnelFailed",
    "TunnelOpened",
    "reason_code",
]

REASONS: tuple[str, ...] = _engine.REASONS + tuple(r for r in Reason if r not in _engine.REASONS)
"""Slugs of `hbone.reasons.Reason`, indexed by reason code. The engine passes on codes it never uses itself."""

_CODES = {slug: code for code, slug in enumerate(REASONS)}

_LISTENER_KINDS = tuple(ListenerKind)

CLIENT = "\x01"
"""In a kept verdict's header value: the client's `address:port`, IPv6 in brackets."""
RANDOM = "\x02"
"""In a kept verdict's header value: 16 random hexadecimal digits, not all of them 0."""

_PLACES = frozenset((CLIENT, RANDOM))


class Kept(enum.IntEnum):
    """What became of a verdict that was to be kept."""

    YES = 0
    STALE = errno.ESTALE
    """Another epoch has begun, or what it leads to is gone."""
    FULL = errno.ENOSPC
    """There are `max_verdicts`: forget them all, or do without."""
    THERE = errno.EEXIST
    """There is one for these connections."""
    NO_KEY = errno.EINVAL
    """Such connections are asked about every time: a field is too long or there twice. Or none are kept at all (`max_verdicts` 0)."""


_EVENT_TYPES: tuple[type[Event], ...] = (
    Accepted,
    ConnectRequested,
    Established,
    Closed,
    TunnelFailed,
    TunnelOpened,
    TunnelClosed,
    Defect,
    Admitted,
    Finished,
    Forgotten,
)


def reason_code(slug: str) -> int:
    """The code for a reason's slug; KeyError for a slug that is not in the closed list."""
    return _CODES[slug]


class Engine:
    """Worker threads and everything they own. Every method may be called from any thread.

    A token whose flow has ended is ignored everywhere: a verdict that comes too late does nothing.
    """

    def __init__(self, config: EngineConfig = EngineConfig()) -> None:  # noqa: B008 (frozen value)
        """Start the workers. OSError when the system refuses threads or descriptors; ValueError for
        limits out of range."""
        self._core = _engine.Core({name: getattr(config, name) for name in EngineConfig.__slots__})
        self.config = config
        self.event_fd: int = self._core.event_fd
        """Readable while events wait (an eventfd; the engine owns it)."""
        self.uses_ipsec_mb: bool = self._core.uses_ipsec_mb
        """Whether ipsec-mb protects TLS records; otherwise OpenSSL does."""

    def take(self, limit: int = 256) -> list[Event]:
        """Up to `limit` waiting events, oldest first."""
        return [_build(raw) for raw in self._core.take(limit)]

    def add_netns(self, netns_fd: int) -> int:
        """Register a network namespace by an open descriptor of it (duplicated); its handle is > 0.

        Handle 0 is the namespace the process started the engine in.
        """
        return self._core.add_netns(netns_fd)

    def remove_netns(self, netns: int) -> None:
        """Forget the namespace. Its descriptor is closed when the last flow or tunnel that uses it ends."""
        self._core.remove_netns(netns)

    def listen(self, fd: int, kind: ListenerKind, netns: int, tag: int, identity: int = 0) -> int:
        """Accept on a listening TCP socket (duplicated). `tag` comes back in events. HBONE listeners name
        the identity they serve with. Returns the listener's handle."""
        return self._core.listen(fd, int(kind), netns, tag, identity)

    def unlisten(self, listener: int) -> None:
        """Stop accepting and close. Established flows live on."""
        self._core.unlisten(listener)

    def set_identity(
        self,
        identity: int,
        chain_pem: bytes,
        key_pem: bytes,
        roots_pem: bytes,
        trust_domains: Sequence[str],
    ) -> None:
        """Create or replace an identity (> 0). Open tunnels live on; new streams get tunnels that were
        dialled with the new certificate. ValueError when the PEM data does not load or key and leaf do
        not belong together."""
        self._core.set_identity(identity, chain_pem, key_pem, roots_pem, tuple(trust_domains))

    def set_crls(self, files: Sequence[bytes]) -> None:
        """Replace the certificate revocation lists (X.509 v2), for every identity and both roles.

        Each file is PEM with any number of lists, DER with one, or empty. Handshakes check every certificate
        of the peer's chain (`peer_cert_revoked`); open tunnels whose peer is revoked by these lists are cut at
        once, with that reason on each of their flows. An issuer without a list revokes nothing; a list past
        its nextUpdate stays in force, as in Istio's ztunnel. ValueError when a list does not load, is a delta
        or indirect one or has an unknown critical extension: the lists before it stay in force then."""
        self._core.set_crls(tuple(files))

    def drop_identity(self, identity: int) -> None:
        """Forget an identity. Open tunnels live on; new handshakes with it fail."""
        self._core.drop_identity(identity)

    def connect_plain(
        self,
        token: int,
        destination: Address,
        *,
        netns: int,
        source_ip: str | None = None,
        headers: Headers = (),
        mark: int = 0,
    ) -> None:
        """Verdict: plain TCP to `destination` from inside `netns`. The 200 to a CONNECT carries `headers`.

        With `source_ip` the onward socket is transparent, bound to that address, tied to the loopback
        device and marked with `mark`, so that the application sees its client's address.
        """
        self._core.connect_plain(token, destination[0], destination[1], netns, source_ip, headers, mark)

    def connect_tunnel(
        self,
        token: int,
        destination: Address,
        *,
        netns: int,
        identity: int,
        sans: Sequence[str],
        authority: str,
        headers: Sequence[tuple[str, str]],
        mark: int = 0,
    ) -> None:
        """Verdict: a CONNECT stream to `authority` over a pooled tunnel to `destination`, for a captured
        connection or for a CONNECT stream (which is answered 200 when the far one is, else 503).

        Tunnels are shared by flows with the same netns, identity, destination and set of `sans`.
        ValueError for headers that cannot be sent or exceed 16 KiB.
        """
        self._core.connect_tunnel(
            token,
            destination[0],
            destination[1],
            netns,
            identity,
            tuple(sorted(set(sans))) if len(sans) > 1 else tuple(sans),
            authority,
            tuple(headers),
            mark,
        )

    def refuse(self, token: int, reason_code: int, status: int = 503) -> None:
        """Verdict: no. A captured connection is reset; a CONNECT stream is answered with `status`."""
        self._core.refuse(token, reason_code, status)

    def keep_plain(
        self,
        event: Accepted | ConnectRequested,
        number: int,
        epoch: int,
        destination: Address,
        *,
        netns: int,
        source_ip: str | None = None,
        headers: Headers = (),
        mark: int = 0,
    ) -> Kept:
        """From now on give this verdict to every connection like the event's, without asking; arguments as those of
        `connect_plain`. Each one is told of afterwards by `Admitted` or `Finished`, with `number`.

        Like it are, captured, those with the same tag, kind and local address, on the way in also the same peer
        IP; of CONNECT streams, those with the same tag, local address, peer IP and identity, authority, and the same
        header fields baggage, x-forwarded-network and forwarded, the latter without the `for` it begins with.
        On nothing else may the verdict rest. `epoch` is that in which it was made.
        """
        whom = _whom(event, number, epoch)
        core = self._core
        return Kept(core.keep_plain(whom, destination[0], destination[1], netns, source_ip, headers, mark))

    def keep_tunnel(
        self,
        event: Accepted | ConnectRequested,
        number: int,
        epoch: int,
        destination: Address,
        *,
        netns: int,
        identity: int,
        sans: Sequence[str],
        authority: str,
        headers: Sequence[tuple[str, str]],
        mark: int = 0,
    ) -> Kept:
        """As `keep_plain`, for `connect_tunnel`. In header values `CLIENT` stands for the client's address and port,
        `RANDOM` for 16 random hexadecimal digits."""
        fixed = list(itertools.takewhile(lambda field: not _PLACES.intersection(field[1]), headers))
        varying = [text for field in headers[len(fixed) :] for text in field]
        return Kept(
            self._core.keep_tunnel(
                _whom(event, number, epoch),
                destination[0],
                destination[1],
                netns,
                identity,
                tuple(sorted(set(sans))),
                authority,
                tuple(fixed),
                _texts(varying),
                len(varying),
                mark,
            )
        )

    def forget(self) -> int:
        """Forget all kept verdicts and begin another epoch, whose number it returns. When it returns, none is given
        any more; `Forgotten` of every worker says when none of them is told of any more. Identities, namespaces
        and drains do the same when they change."""
        return self._core.forget()

    def epoch(self) -> int:
        """The current epoch: ask before deciding, and keep with it."""
        return self._core.epoch()

    def flush(self) -> None:
        """Hand the verdicts given since the last flush to the workers."""
        self._core.flush()

    def cut(self, token: int, reason_code: int) -> None:
        """Reset a live flow on both sides. Its tunnel survives."""
        self._core.cut(token, reason_code)

    def drain(self, tag: int) -> None:
        """Close the tag's listeners; its HBONE server tunnels say GOAWAY and end with their last stream."""
        self._core.drain(tag)

    def drain_all(self) -> None:
        """`drain` for every tag."""
        self._core.drain_all()

    def counters(self) -> list[tuple[int, int, int]]:
        """(token, bytes from client, bytes to client) of live flows that moved bytes since the last call.
        Values are cumulative; a flow's final values are in its `Closed`."""
        return self._core.counters()

    def stats(self) -> dict[str, int]:
        """Gauges and counters of the engine by name."""
        return self._core.stats()

    def stop(self) -> None:
        """Reset everything that is live and join the workers; idempotent. `take` still returns the
        remaining events, among them a `Closed` for every live token. `event_fd` is closed."""
        self._core.stop()


def _texts(texts: Sequence[str]) -> bytes:
    return b"".join(text.encode("latin-1") + b"\0" for text in texts)


def _whom(event: Accepted | ConnectRequested, number: int, epoch: int) -> tuple[Any, ...]:
    if isinstance(event, Accepted):
        return number, epoch, int(event.kind), event.tag, *event.local, event.peer[0], b"", b"", b"", 0
    fields = _texts([text for field in event.headers for text in field])
    identity, authority = event.peer_identity.encode("latin-1"), event.authority.encode("latin-1")
    kind, count = int(ListenerKind.HBONE), len(event.headers)
    return number, epoch, kind, event.tag, *event.local, event.peer[0], identity, authority, fields, count


def _build(raw: tuple[Any, ...]) -> Event:
    kind = raw[0]
    if kind == 0:
        _, token, tag, listener, peer, local, at = raw
        return Accepted(token, tag, _LISTENER_KINDS[listener], peer, local, at)
    # Past the constructor, which would take the tuple apart only to put it together again.
    event: Event = tuple.__new__(_EVENT_TYPES[kind], raw[1:])
    return event
