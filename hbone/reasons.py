"""Why a connection ended or was refused: one closed list, used by logs, metrics, verdicts and the engine.

Every slug carries the response flag of Istio's metrics, the status a CONNECT request is answered with,
and one sentence for people. Nothing in the product reports a cause in free text instead of a slug.
"""

import enum
from typing import Final, NamedTuple

__all__ = ["Reason"]

_OK: Final = 200
_BAD_REQUEST: Final = 400
_UNAUTHORIZED: Final = 401
_UNAVAILABLE: Final = 503


class Reason(enum.StrEnum):
    """The cause of an ending. The value is the slug that logs, metrics and the engine carry."""

    OK = "ok"

    POLICY_DENIED = "policy_denied"
    POLICY_NO_MATCH = "policy_no_match"
    POLICY_PENDING = "policy_pending"
    POLICY_UNUSABLE = "policy_unusable"
    POLICY_CHANGED = "policy_changed"

    UNKNOWN_SOURCE = "unknown_source"
    WORKLOAD_PENDING = "workload_pending"
    NO_HEALTHY_UPSTREAM = "no_healthy_upstream"
    UNKNOWN_SERVICE = "unknown_service"
    UNKNOWN_PORT = "unknown_port"
    ILLEGAL_PORT = "illegal_port"
    WAYPOINT_UNRESOLVED = "waypoint_unresolved"
    NETWORK_UNREACHABLE = "network_unreachable"
    NAME_UNRESOLVED = "name_unresolved"
    APP_TUNNEL_UNSUPPORTED = "app_tunnel_unsupported"
    ROUTE_CHANGED = "route_changed"

    IDENTITY_UNAVAILABLE = "identity_unavailable"
    IP_MISMATCH = "ip_mismatch"
    BAD_REQUEST = "bad_request"

    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECT_UNREACHABLE = "connect_unreachable"
    CONNECT_FAILED = "connect_failed"
    NETWORK_POLICY = "network_policy"

    TLS_HANDSHAKE_FAILED = "tls_handshake_failed"
    TLS_HANDSHAKE_TIMEOUT = "tls_handshake_timeout"
    PEER_CERT_MISSING = "peer_cert_missing"
    PEER_CERT_INVALID = "peer_cert_invalid"
    PEER_CERT_EXPIRED = "peer_cert_expired"
    PEER_SAN_MISMATCH = "peer_san_mismatch"
    PEER_TRUST_DOMAIN = "peer_trust_domain"
    PEER_CERT_REVOKED = "peer_cert_revoked"

    PEER_PROTOCOL = "peer_protocol"
    PEER_ABUSE = "peer_abuse"
    PEER_REFUSED = "peer_refused"
    PEER_RESET = "peer_reset"
    PEER_GOAWAY = "peer_goaway"
    PEER_DEAD = "peer_dead"

    DECISION_TIMEOUT = "decision_timeout"
    STALLED = "stalled"
    HALF_CLOSE_TIMEOUT = "half_close_timeout"
    STREAM_LIMIT = "stream_limit"
    OVERLOAD = "overload"
    DRAINING = "draining"
    RESET_BY_APP = "reset_by_app"
    TRUNCATED = "truncated"
    SHUTDOWN = "shutdown"
    INTERNAL = "internal"

    @property
    def response_flag(self) -> str:
        """The `response_flags` label of Istio's TCP metrics; "-" when nothing went wrong."""
        return _FACTS[self].flag

    @property
    def http_status(self) -> int:
        """What a CONNECT request is answered when it is refused for this reason (200 for `ok`)."""
        return _FACTS[self].status

    @property
    def text(self) -> str:
        """One sentence for people, without a full stop."""
        return _FACTS[self].text

    def of_tunnel_dial(self) -> "Reason":
        """The reason to report when this happened while dialling a peer's HBONE port.

        A silent drop of SYNs to 15008 is, in practice, a Kubernetes NetworkPolicy that does not allow
        the port; Istio has a flag of its own for it.
        """
        return Reason.NETWORK_POLICY if self is Reason.CONNECT_TIMEOUT else self


class _Fact(NamedTuple):
    flag: str
    status: int
    text: str


def _policy(text: str) -> _Fact:
    return _Fact("DENY", _UNAUTHORIZED, text)


def _connect(text: str) -> _Fact:
    return _Fact("CONNECT", _UNAVAILABLE, text)


def _tls(text: str) -> _Fact:
    return _Fact("TLS_FAILURE", _UNAVAILABLE, text)


def _h2(text: str) -> _Fact:
    return _Fact("H2_HANDSHAKE_FAILURE", _UNAVAILABLE, text)


_FACTS: Final[dict[Reason, _Fact]] = {
    Reason.OK: _Fact("-", _OK, "the connection completed"),
    Reason.POLICY_DENIED: _policy("a DENY policy matched"),
    Reason.POLICY_NO_MATCH: _policy("ALLOW policies apply and none of them matched"),
    Reason.POLICY_PENDING: _policy("a policy this workload refers to has not been delivered yet"),
    Reason.POLICY_UNUSABLE: _policy("a policy that applies could not be understood, so nothing is let in"),
    Reason.POLICY_CHANGED: _policy("a policy change no longer permits this connection"),
    Reason.UNKNOWN_SOURCE: _connect("the pod the connection comes from is not known"),
    Reason.WORKLOAD_PENDING: _connect("the control plane has not yet described this node's pod"),
    Reason.NO_HEALTHY_UPSTREAM: _connect("the service has no usable endpoint"),
    Reason.UNKNOWN_SERVICE: _connect("no service of this name is known"),
    Reason.UNKNOWN_PORT: _connect("the service does not have this port"),
    Reason.ILLEGAL_PORT: _connect("the port belongs to the mesh itself"),
    Reason.WAYPOINT_UNRESOLVED: _connect("the waypoint that must see this traffic is not known"),
    Reason.NETWORK_UNREACHABLE: _connect("the destination is on another network, which cannot be reached"),
    Reason.NAME_UNRESOLVED: _connect("the destination's host name could not be resolved"),
    Reason.APP_TUNNEL_UNSUPPORTED: _connect("the workload asks for PROXY protocol, which is not spoken here"),
    Reason.ROUTE_CHANGED: _connect("the route this connection was made over is no longer the right one"),
    Reason.IDENTITY_UNAVAILABLE: _Fact("IDENTITY_ERROR", _UNAVAILABLE, "there is no valid certificate"),
    Reason.IP_MISMATCH: _Fact(
        "CONNECT", _BAD_REQUEST, "the request names a destination that is not this pod"
    ),
    Reason.BAD_REQUEST: _Fact("CONNECT", _BAD_REQUEST, "the request is not a well-formed CONNECT"),
    Reason.CONNECT_REFUSED: _connect("the destination refused the connection"),
    Reason.CONNECT_TIMEOUT: _connect("the destination did not answer in time"),
    Reason.CONNECT_UNREACHABLE: _connect("there is no route to the destination"),
    Reason.CONNECT_FAILED: _connect("the connection could not be made"),
    Reason.NETWORK_POLICY: _Fact(
        "NETWORK_POLICY", _UNAVAILABLE, "the peer's HBONE port did not answer; a NetworkPolicy may block it"
    ),
    Reason.TLS_HANDSHAKE_FAILED: _tls("the TLS handshake failed"),
    Reason.TLS_HANDSHAKE_TIMEOUT: _tls("the TLS handshake took too long"),
    Reason.PEER_CERT_MISSING: _tls("the peer showed no certificate"),
    Reason.PEER_CERT_INVALID: _tls("the peer's certificate is not valid here"),
    Reason.PEER_CERT_EXPIRED: _tls("the peer's certificate is outside its validity time"),
    Reason.PEER_SAN_MISMATCH: _tls("the peer is not the workload that was expected"),
    Reason.PEER_TRUST_DOMAIN: _tls("the peer belongs to a trust domain that is not trusted"),
    Reason.PEER_CERT_REVOKED: _Fact("CERT_REVOKED", _UNAVAILABLE, "the peer's certificate is revoked"),
    Reason.PEER_PROTOCOL: _h2("the peer broke HTTP/2 or TLS"),
    Reason.PEER_ABUSE: _h2("the peer exceeded a budget that protects this agent"),
    Reason.PEER_REFUSED: _connect("the peer refused the request"),
    Reason.PEER_RESET: _connect("the peer reset the connection"),
    Reason.PEER_GOAWAY: _connect("the peer is going away"),
    Reason.PEER_DEAD: _connect("the peer stopped answering"),
    Reason.DECISION_TIMEOUT: _connect("no decision was made in time"),
    Reason.STALLED: _connect("the reader took no data for too long"),
    Reason.HALF_CLOSE_TIMEOUT: _connect("the other side never closed after one side did"),
    Reason.STREAM_LIMIT: _connect("the tunnel carries as many streams as it may"),
    Reason.OVERLOAD: _connect("the agent is shedding load"),
    Reason.DRAINING: _Fact("-", _UNAVAILABLE, "the listener is draining"),
    Reason.RESET_BY_APP: _Fact("-", _UNAVAILABLE, "the application reset the connection"),
    Reason.TRUNCATED: _connect("the peer ended the TLS connection without saying so"),
    Reason.SHUTDOWN: _Fact("-", _UNAVAILABLE, "the agent is shutting down"),
    Reason.INTERNAL: _connect("the agent failed; this is a defect"),
}
