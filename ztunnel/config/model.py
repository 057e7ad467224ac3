"""All settings, read, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ebpf.variants import Choice
from ztunnel.config.settings import SETTINGS
from ztunnel.config.values import Endpoint
from ztunnel.enrol.choice import Setting as Enrol


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


# A row without a field, or a field without a row, is a mistake in this room.
_FREE = {"xds_headers", "ca_headers", "proxy_metadata"}
if {row.field for row in SETTINGS} != {f.name for f in fields(Config)} - _FREE:
    raise AssertionError("SETTINGS and Config differ")
