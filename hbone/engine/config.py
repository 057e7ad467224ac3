"""Limits, windows and deadlines of an engine, given once at its start."""

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything a deployment may tune. Sizes are bytes, times are seconds.

    Windows start at `*_window` and double up to `*_window_max` for streams whose reader keeps up.
    `stream_limit` is what HBONE listeners advertise as SETTINGS_MAX_CONCURRENT_STREAMS; `pool_streams` is
    the most streams this side puts on one pooled tunnel (the peer's own limit is honoured as well).
    `answer_patience`: a CONNECT without an answer for so long has its tunnel's peer asked for a sign of life; after as
    long again without one, or when the peer has said GOAWAY, it is tried on another tunnel.
    `cut_expired` ends open tunnels when a certificate of the peer's chain expires; Istio's ztunnel does not,
    and neither do we by default: a new handshake is where certificates are judged.
    `event_hold` is how long events that nobody waits for (`Established`, `Closed`, `Admitted`) may stay with a
    worker, so that one look at the events finds more of them; 0 signals each at once.
    `max_sessions` is how many TLS sessions each identity keeps for resumption, in each role; 0: none.
    `session_lifetime`, in seconds, is for how long after a full handshake.
    `max_verdicts` bounds what `Engine.keep_plain` and `keep_tunnel` keep.
    `ipsec_mb` lets Intel's Multi-Buffer library protect TLS records where it is installed and the CPU has the
    instructions for which it is faster (VAES, AVX-512); otherwise, and without it, OpenSSL does.
    """

    workers: int = 2
    max_flows: int = 200_000
    max_tunnels: int = 50_000
    max_handshakes: int = 2_000
    max_events: int = 65_536
    max_verdicts: int = 10_000
    max_sessions: int = 0
    session_lifetime: int = 3600
    event_hold: float = 0.0

    stream_window: int = 1 * MIB
    stream_window_max: int = 4 * MIB
    connection_window: int = 4 * MIB
    connection_window_max: int = 16 * MIB
    max_frame_size: int = 1 * MIB
    max_header_list: int = 16 * KIB
    tunnel_buffer_max: int = 32 * MIB

    stream_limit: int = 200
    pool_streams: int = 100
    pool_tunnels: int = 256
    pool_idle_timeout: float = 300.0

    connect_timeout: float = 10.0
    handshake_timeout: float = 10.0
    preface_timeout: float = 10.0
    settings_timeout: float = 10.0
    decision_timeout: float = 30.0
    response_timeout: float = 45.0
    answer_patience: float = 2.5
    half_close_timeout: float = 3600.0
    stall_timeout: float = 3600.0
    ping_interval: float = 10.0
    ping_timeout: float = 20.0
    close_linger: float = 1.0

    cut_expired: bool = False
    ipsec_mb: bool = True
    rekey_records: int = 1 << 23
    tunnel_events: bool = False
