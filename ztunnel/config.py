"""Settings of the node agent: one table, read from the environment once at start.

Names are Istio's where Istio has the setting. A value that cannot be read is a ConfigError of one line that
names the variable and says what is expected; nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ebpf.variants import Choice
from ztunnel import configvalues as values
from ztunnel.configvalues import Endpoint
from ztunnel.enrol.choice import Setting as Enrol

__all__ = ["SETTINGS", "Config", "ConfigError", "Endpoint", "Setting", "describe", "load"]


class ConfigError(Exception):
    """A setting is missing or cannot be read. The text is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: the variable, where it goes, how it is read, what it means."""

    env: str
    field: str
    parse: Callable[[str], Any]
    default: str
    doc: str
    also: tuple[str, ...] = ()


ROOT_CA = "./var/run/secrets/istio/root-cert.pem"

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "NODE_NAME", "node_name", values.required, "", "name of this node; pods of other nodes are not ours"
    ),
    Setting("POD_NAME", "pod_name", values.text, "ztunnel", "name of the agent's own pod"),
    Setting(
        "POD_NAMESPACE", "pod_namespace", values.text, "istio-system", "namespace of the agent's own pod"
    ),
    Setting(
        "INSTANCE_IP", "instance_ip", values.text, "1.1.1.1", "the agent's own address, part of its xDS id"
    ),
    Setting(
        "SERVICE_ACCOUNT", "service_account", values.text, "ztunnel", "service account of the agent's own pod"
    ),
    Setting(
        "CLUSTER_ID",
        "cluster_id",
        values.text,
        "Kubernetes",
        "id of this cluster",
        also=("ISTIO_META_CLUSTER_ID",),
    ),
    Setting("NETWORK", "network", values.text, "", "network id of this node"),
    Setting("CLUSTER_DOMAIN", "cluster_domain", values.text, "cluster.local", "DNS domain of the cluster"),
    Setting(
        "TRUST_DOMAIN", "trust_domain", values.text, "cluster.local", "trust domain until xDS names another"
    ),
    Setting(
        "TRUST_DOMAIN_ALIASES",
        "trust_domain_aliases",
        values.names,
        "",
        "more trust domains of peers (a,b,...)",
    ),
    Setting(
        "XDS_ADDRESS",
        "xds_address",
        values.endpoint,
        "https://istiod.istio-system.svc:15012",
        "control plane (xDS)",
    ),
    Setting("CA_ADDRESS", "ca_address", values.endpoint, "", "certificate authority; empty: XDS_ADDRESS"),
    Setting(
        "XDS_ROOT_CA", "xds_root_ca", values.text, ROOT_CA, "roots of the control plane: path, SYSTEM or PEM"
    ),
    Setting("CA_ROOT_CA", "ca_root_ca", values.text, ROOT_CA, "roots of the CA: path, SYSTEM or PEM"),
    Setting("ALT_XDS_HOSTNAME", "alt_xds_hostname", values.text, "", "TLS name of the control plane"),
    Setting("ALT_CA_HOSTNAME", "alt_ca_hostname", values.text, "", "TLS name of the CA"),
    Setting(
        "AUTH_TOKEN",
        "auth_token",
        values.text,
        "./var/run/secrets/tokens/istio-token",
        "bearer token: path (read again at each use) or literal; empty: none",
    ),
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
    Setting("XDS_ON_DEMAND", "xds_on_demand", values.flag, "false", "ask for addresses when they are needed"),
    Setting("SECRET_TTL", "secret_ttl", values.seconds, "86400s", "life of a certificate to ask for"),
    Setting(
        "INPOD_UDS",
        "inpod_uds",
        values.optional_path,
        "/var/run/ztunnel/ztunnel.sock",
        "ZDS socket; empty: none",
    ),
    Setting(
        "AMBIENT_ENROL",
        "enrol",
        values.enrol,
        "auto",
        "who tells which pods are in: zds (a CNI agent), kubernetes (the agent looks itself), or auto: kubernetes "
        "in a cluster where there is no ZDS socket (docs/capture.md)",
    ),
    Setting(
        "AMBIENT_POD_CGROUPS",
        "pod_cgroups",
        values.paths,
        "",
        "directories below which pods' cgroups are (a,b,...); empty: AMBIENT_CGROUP, else every mount",
    ),
    Setting(
        "AMBIENT_POD_STATUS",
        "pod_status",
        values.flag,
        "true",
        "say on pods that they are captured; without it other nodes send them plaintext",
    ),
    Setting(
        "AMBIENT_ENROL_EXCLUDE_NAMESPACES",
        "enrol_excluded",
        values.names,
        "kube-system",
        "namespaces of which own discovery enrols no pod (a,b,...)",
    ),
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
        "TERMINATION_GRACE_PERIOD_SECONDS",
        "grace_period",
        values.optional_seconds,
        "",
        "as in the pod; the drain deadline is derived from it",
    ),
    Setting(
        "CONNECTION_TERMINATION_DEADLINE",
        "termination_deadline",
        values.optional_seconds,
        "",
        "how long connections may go on after SIGTERM; empty: from the grace period, else 5s",
    ),
    Setting(
        "AMBIENT_HANDOVER_DEADLINE",
        "handover_deadline",
        values.optional_seconds,
        "",
        "the same where a successor has taken the pods over; empty: no difference",
    ),
    Setting("LOG_FORMAT", "log_format", values.log_format, "plain", "plain or json"),
    Setting("LOG_LEVEL", "log_level", values.text, "info", "level, scope=level, ...", also=("RUST_LOG",)),
    Setting("ADMIN_PORT", "admin_port", values.port, "15000", "admin pages (loopback only)"),
    Setting("STATS_PORT", "stats_port", values.port, "15020", "metrics"),
    Setting("READINESS_PORT", "readiness_port", values.port, "15021", "readiness"),
    Setting(
        "WORKLOAD_WAIT",
        "workload_wait",
        values.seconds,
        "5s",
        "wait for an own pod that xDS does not know yet",
    ),
    Setting(
        "POLICY_WAIT",
        "policy_wait",
        values.seconds,
        "2s",
        "wait for a policy that a workload lists; then it denies",
    ),
    Setting("CERTIFICATE_WAIT", "certificate_wait", values.seconds, "5s", "wait for a certificate"),
    Setting("CRL_PATH", "crl_path", values.optional_path, "", "certificate revocation lists (PEM); watched"),
    Setting(
        "AMBIENT_CGROUP",
        "cgroup",
        values.optional_path,
        "",
        "cgroup2 directory to attach to; empty: the mount",
    ),
    Setting(
        "AMBIENT_CAPTURE",
        "capture",
        values.capture_choice,
        "auto",
        "auto, or the variant B or C (docs/capture.md); auto takes C only where B does not work",
    ),
    Setting(
        "AMBIENT_PIN_DIR",
        "pin_dir",
        values.path,
        "/sys/fs/bpf/ambientlite",
        "where maps and links stay (bpffs)",
    ),
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
    Setting(
        "AMBIENT_TAKEOVER",
        "takeover",
        values.flag,
        "false",
        "start beside a running agent and take over its pods",
    ),
    Setting(
        "AMBIENT_FD_STORE",
        "fd_store",
        values.optional_path,
        "",
        "socket of `python -m ebpf.fdstore`, which keeps listeners while no agent is there; empty: none",
    ),
    Setting(
        "AMBIENT_EXEMPT_INBOUND_PORTS", "exempt_inbound", values.ports, "", "ports never captured inbound"
    ),
    Setting(
        "AMBIENT_EXEMPT_OUTBOUND_PORTS", "exempt_outbound", values.ports, "", "ports never captured outbound"
    ),
)


@dataclass(frozen=True, slots=True)
class Config:
    """Every setting of SETTINGS, read. Durations in seconds, sizes in bytes."""

    node_name: str
    pod_name: str
    pod_namespace: str
    instance_ip: str
    service_account: str
    cluster_id: str
    network: str
    cluster_domain: str
    trust_domain: str
    trust_domain_aliases: tuple[str, ...]
    xds_address: Endpoint | None
    ca_address: Endpoint | None
    xds_root_ca: str
    ca_root_ca: str
    alt_xds_hostname: str
    alt_ca_hostname: str
    auth_token: str
    dns_capture: bool | None
    preferred_namespace: str
    ipv6_enabled: bool
    xds_on_demand: bool
    secret_ttl: float
    inpod_uds: Path | None
    enrol: Enrol
    pod_cgroups: tuple[Path, ...]
    pod_status: bool
    enrol_excluded: tuple[str, ...]
    orig_src: bool | None
    response_baggage: bool
    stream_window: int
    connection_window: int
    pool_max_streams: int
    pool_idle: float
    tls_sessions: int
    workers: int
    ipsec_mb: bool
    grace_period: float | None
    termination_deadline: float | None
    handover_deadline: float | None
    log_format: str
    log_level: str
    admin_port: int
    stats_port: int
    readiness_port: int
    workload_wait: float
    policy_wait: float
    certificate_wait: float
    crl_path: Path | None
    cgroup: Path | None
    capture: Choice
    pin_dir: Path
    same_node_encryption: bool
    redirect_peer: bool
    takeover: bool
    fd_store: Path | None
    exempt_inbound: frozenset[int]
    exempt_outbound: frozenset[int]
    xds_headers: tuple[tuple[str, str], ...] = ()
    ca_headers: tuple[tuple[str, str], ...] = ()
    proxy_metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def drain_deadline(self) -> float:
        """Seconds that live connections get after SIGTERM (Istio's rule: the grace period less a margin)."""
        if self.termination_deadline is not None:
            return self.termination_deadline
        if self.grace_period is None:
            return 5.0
        return self.grace_period - 5 if self.grace_period > 10 else max(1.0, self.grace_period - 1)

    def deadline(self, *, handed_over: bool) -> float:
        """`drain_deadline`, or what it is where a successor has the pods."""
        own = self.handover_deadline if handed_over else None
        return self.drain_deadline if own is None else own

    @property
    def captures_dns(self) -> bool:
        """Whether pods' questions are captured, unless a pod says otherwise: as Istio, by default they are."""
        return not self.xds_on_demand if self.dns_capture is None else self.dns_capture

    def captures_dns_of(self, asked: bool | None) -> bool:
        """Of a pod with this choice (None: none). On demand its choice does not count: names need all services."""
        return self.captures_dns if self.xds_on_demand or asked is None else asked

    @property
    def node_id(self) -> str:
        """The xDS node id by which Istio's control plane knows a ztunnel."""
        pod = f"{self.pod_name}.{self.pod_namespace}"
        return f"ztunnel~{self.instance_ip}~{pod}~{self.pod_namespace}.svc.{self.cluster_domain}"

    def shown(self) -> dict[str, Any]:
        """The settings for config_dump, by variable; a literal token is not shown."""
        rows = {row.env: getattr(self, row.field) for row in SETTINGS}
        if len(self.auth_token) > 100 and "/" not in self.auth_token[:5]:
            rows["AUTH_TOKEN"] = "(literal)"  # noqa: S105 - what is shown instead of one
        return {name: _plain(value) for name, value in rows.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Endpoint):
        return f"{'https' if value.tls else 'http'}://{value.target}"
    if isinstance(value, (tuple, frozenset)):
        return sorted(_plain(each) for each in value)
    return str(value) if isinstance(value, Path) else value


def _headers(environ: Mapping[str, str], prefix: str) -> tuple[tuple[str, str], ...]:
    found = {name[len(prefix) :].lower(): value for name, value in environ.items() if name.startswith(prefix)}
    return tuple(sorted((name, value) for name, value in found.items() if name))


def _proxy_metadata(environ: Mapping[str, str]) -> dict[str, Any]:
    """`ISTIO_META_X` and `ISTIO_METAJSON_X` become key X of the xDS node's metadata."""
    metadata: dict[str, Any] = {}
    for name, value in sorted(environ.items()):
        if name.startswith("ISTIO_METAJSON_"):
            try:
                metadata[name.removeprefix("ISTIO_METAJSON_")] = json.loads(value)
            except ValueError as error:
                raise ConfigError(f"{name} must be JSON: {error}") from None
        elif name.startswith("ISTIO_META_"):
            metadata[name.removeprefix("ISTIO_META_")] = value
    return metadata


def load(environ: Mapping[str, str]) -> Config:
    """Read every setting; raises ConfigError naming the first one that cannot be read."""
    found: dict[str, Any] = {}
    for row in SETTINGS:
        name = next((name for name in (row.env, *row.also) if name in environ), row.env)
        text = environ.get(name, row.default).strip()
        try:
            found[row.field] = row.parse(text)
        except ValueError as error:
            got = f", not {text!r}" if text else ""
            raise ConfigError(f"{name} {error}{got}: {row.doc}") from None
    found["ca_address"] = found["ca_address"] or found["xds_address"]
    if found["dns_capture"] and found["xds_on_demand"]:
        raise ConfigError(
            "ISTIO_META_DNS_CAPTURE and XDS_ON_DEMAND exclude each other: names need all services; unset one"
        )
    if found["redirect_peer"] and found["same_node_encryption"]:
        raise ConfigError(
            "AMBIENT_REDIRECT_PEER is for direct connections: set SAME_NODE_ENCRYPTION=never, or unset it"
        )
    return Config(
        **found,
        xds_headers=_headers(environ, "XDS_HEADER_"),
        ca_headers=_headers(environ, "CA_HEADER_"),
        proxy_metadata=_proxy_metadata(environ),
    )


def describe() -> str:
    """The table for `ztunnel --help`."""
    width = max(len(row.env) for row in SETTINGS)
    lines = [f"  {row.env:<{width}}  {row.doc}{_shown_default(row)}" for row in SETTINGS]
    lines.append(f"  {'XDS_HEADER_x, CA_HEADER_x':<{width}}  more request headers")
    lines.append(f"  {'ISTIO_META_x, ISTIO_METAJSON_x':<{width}}  metadata of the xDS node")
    return "\n".join(lines)


def _shown_default(row: Setting) -> str:
    return f" [{row.default}]" if row.default else ""


# A row without a field, or a field without a row, is a mistake in this file.
_FREE = {"xds_headers", "ca_headers", "proxy_metadata"}
if {row.field for row in SETTINGS} != {f.name for f in fields(Config)} - _FREE:
    raise AssertionError("SETTINGS and Config differ")
