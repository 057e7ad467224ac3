"""What is done with captured connections and questions for names."""

from ztunnel.config import values
from ztunnel.config.setting import Setting

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "ISTIO_META_DNS_CAPTURE",
        "dns_capture",
        values.optional_flag,
        "",
        "answer pods' questions to name servers; empty: yes, unless XDS_ON_DEMAND (docs/dns.md)",
    ),
    Setting(
        "PREFERED_SERVICE_NAMESPACE",
        "preferred_namespace",
        values.text,
        "",
        "of equal names in several namespaces this one's is answered (Istio's spelling)",
    ),
    Setting("IPV6_ENABLED", "ipv6_enabled", values.flag, "true", "answer questions for IPv6 addresses"),
    Setting(
        "ENABLE_ORIG_SRC",
        "orig_src",
        values.optional_flag,
        "",
        "apps see the client's address; empty: if possible",
    ),
    Setting(
        "ENABLE_RESPONSE_BAGGAGE",
        "response_baggage",
        values.flag,
        "true",
        "read baggage of peers and answer it",
    ),
    Setting(
        "HTTP2_STREAM_WINDOW_SIZE", "stream_window", values.count, "4194304", "largest stream window in bytes"
    ),
    Setting(
        "HTTP2_CONNECTION_WINDOW_SIZE",
        "connection_window",
        values.count,
        "16777216",
        "tunnel window in bytes",
    ),
    Setting(
        "POOL_MAX_STREAMS_PER_CONNECTION", "pool_max_streams", values.count, "100", "streams in one tunnel"
    ),
    Setting(
        "POOL_UNUSED_RELEASE_TIMEOUT", "pool_idle", values.seconds, "5m", "close tunnels unused this long"
    ),
    Setting(
        "AMBIENT_TLS_SESSIONS",
        "tls_sessions",
        values.count,
        "64",
        "TLS sessions each identity keeps for resumption, as client and as server; 0: none",
    ),
    Setting(
        "ZTUNNEL_WORKER_THREADS",
        "workers",
        values.count,
        "0",
        "engine threads; 0: two, or one where it may run on only one CPU",
    ),
    Setting("AMBIENT_IPSEC_MB", "ipsec_mb", values.flag, "true", "TLS records by ipsec-mb where it is there"),
    Setting(
        "SAME_NODE_ENCRYPTION",
        "same_node_encryption",
        values.same_node,
        "always",
        "always, or never: allowed pods of one node talk plain TCP in the kernel (docs/direct-path.md)",
    ),
    Setting(
        "AMBIENT_REDIRECT_PEER",
        "redirect_peer",
        values.flag,
        "false",
        "with SAME_NODE_ENCRYPTION=never: direct connections go past the node's routing and filters (docs/direct-path.md)",
    ),
)
