"""Which parts of the agent are seen as which metrics. Wiring only: every value is read when it is scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import trio

from ebpf.capture import Capture
from hbone.engine import Engine
from ztunnel.capabilities import kernel_tls
from ztunnel.carry import Carrier
from ztunnel.dns.server import DnsServer
from ztunnel.enrol.pods import Pods
from ztunnel.enrol.source import PodSource
from ztunnel.flows.redecide import Redecider
from ztunnel.flows.registry import Registry
from ztunnel.identity.manager import IdentityManager
from ztunnel.logs import LineWriter
from ztunnel.metrics import Metrics, Sample
from ztunnel.pump import Pump
from ztunnel.xds.client import XdsClient

__all__ = [
    "watch_capture",
    "watch_control_plane",
    "watch_engine",
    "watch_flows",
    "watch_identities",
    "watch_log",
    "watch_names",
    "watch_pods",
    "watch_tasks",
]


def _by(label: str, counts: Callable[[], Iterable[tuple[str, float]]]) -> Callable[[], Iterator[Sample]]:
    return lambda: (({label: name}, value) for name, value in sorted(counts()))


def watch_pods(metrics: Metrics, pods: Pods, source: PodSource) -> None:
    """Istio's workload_manager_*; by whom pods are told of."""
    names = "workload_manager_"
    metrics.value("gauge", names + "active_proxy_count", "Pods enrolled", lambda: len(pods))
    metrics.value("gauge", names + "pending_proxy_count", "Pods that wait", lambda: len(pods.pending))
    metrics.value("counter", names + "proxies_started", "Pods enrolled so far", lambda: pods.started)
    metrics.value("counter", names + "proxies_stopped", "Pods withdrawn so far", lambda: pods.stopped)
    if (zds := source.zds) is not None:
        metrics.value("counter", "ambient_zds_errors", "ZDS protocol errors", lambda: zds.errors)
    metrics.gauge("ambient_enrolment_info", "Who tells which pods are in", lambda: _enrolment(source))
    metrics.gauge(
        "ambient_enrolment_age_seconds",
        "How long the API server has not been heard, where the agent asks it for pods",
        lambda: [({}, source.discovery.age())] if source.discovery is not None else [],
    )
    metrics.gauge(
        "ambient_pods_waiting",
        "Pods that are to be in and whose network is not found or not captured yet",
        lambda: [({}, len(source.discovery.roster.waiting()))] if source.discovery is not None else [],
    )


def _enrolment(source: PodSource) -> Iterator[Sample]:
    if source.chosen is not None:
        yield {"source": source.chosen.source}, 1


def watch_control_plane(metrics: Metrics, xds: XdsClient, version: Callable[[], int]) -> None:
    """Istio's istio_xds_*, and how old our knowledge is."""
    metrics.counter(
        "istio_xds_connection_terminations",
        "Ends of the xDS stream by cause",
        _by("reason", xds.terminations.items),
    )
    metrics.counter("istio_xds_message", "xDS responses", _by("url", xds.messages.items))
    metrics.counter("istio_xds_message_bytes", "Bytes of xDS responses", _by("url", xds.message_bytes.items))
    metrics.counter(
        "ambient_xds_rejected", "Resources that could not be used", _by("url", xds.rejected.items)
    )
    metrics.value("gauge", "ambient_xds_connected", "1 while the stream is up", lambda: int(xds.connected))
    metrics.value("gauge", "ambient_snapshot_version", "Changes applied since the start", version)
    metrics.gauge("ambient_xds_age_seconds", "Time since the control plane spoke last", lambda: _age(xds))


def _age(xds: XdsClient) -> Iterator[Sample]:
    if xds.last_message is not None:
        yield {}, trio.current_time() - xds.last_message


def watch_identities(metrics: Metrics, identities: IdentityManager) -> None:
    """Certificates: requests, and when each runs out."""

    def expiries() -> Iterator[Sample]:
        for held in identities.held():
            if held.svid is not None:
                yield {"identity": str(held.identity)}, held.svid.not_after.timestamp()

    metrics.value("counter", "ambient_certificates_issued", "Certificates", lambda: identities.issued)
    metrics.value(
        "counter", "ambient_certificate_failures", "Requests that failed", lambda: identities.failed
    )
    metrics.gauge("ambient_certificate_expiry_timestamp_seconds", "When a certificate runs out", expiries)


def watch_flows(
    metrics: Metrics, flows: Registry, carrier: Carrier, redecider: Redecider, pump: Pump
) -> None:
    """Live connections, and what happened to them."""

    def tunnel_failures() -> Iterator[Sample]:
        for (reason, side), value in sorted(pump.tunnel_failures.items()):
            yield {"reason": reason, "direction": side}, value

    metrics.value("gauge", "ambient_flows", "Live connections", lambda: len(flows))
    metrics.value("gauge", "ambient_waiting", "Connections that wait for a decision", lambda: carrier.waiting)
    metrics.value("counter", "ambient_cuts", "Connections cut by a change", lambda: redecider.cuts)
    metrics.counter("ambient_tunnel_failures", "Tunnels that failed", tunnel_failures)


def watch_engine(metrics: Metrics, engine: Engine) -> None:
    """The engine's own statistics, one label value each; peers that revocation lists turned away or cut."""

    def rejections() -> Iterator[Sample]:
        stats = engine.stats()
        for side, reporter in (("outbound", "source"), ("inbound", "destination")):
            if value := stats[f"revoked_{side}"]:
                yield {"reporter": reporter}, value

    def sockets() -> Iterator[Sample]:
        stats = engine.stats()
        yield {"reporter": "source"}, stats["sockets_outbound"]
        yield {"reporter": "destination"}, stats["sockets_inbound"] + stats["sockets_hbone"]

    metrics.value(
        "gauge",
        "ambient_kernel_tls",
        "1 where the kernel offers TLS for sockets; the engine does not use it",
        lambda: int(kernel_tls()),
    )
    metrics.gauge("istio_tcp_sockets_open", "Accepted TCP sockets that are open", sockets)
    metrics.counter("istio_crl_policy_rejections", "Connections rejected by revocation lists", rejections)
    metrics.gauge(
        "ambient_engine", "Statistics of the byte engine", _by("stat", lambda: engine.stats().items())
    )


def watch_capture(metrics: Metrics, capture: Capture) -> None:
    """The kernel's counters."""
    metrics.counter(
        "ambient_capture",
        "Connections seen by the capture programs",
        _by("stat", lambda: capture.counters().items()),
    )
    metrics.gauge(
        "ambient_capture_info",
        "How connections are captured, and whether that was the first choice",
        lambda: [({"variant": capture.variant, "why": capture.chosen.why}, 1)],
    )
    redirect = capture.direct.redirect
    metrics.gauge(
        "ambient_redirect_peer_info",
        "Whether direct connections go past the node's routing and filters",
        lambda: [({"state": redirect.state.value}, 1)],
    )
    metrics.gauge(
        "ambient_redirect_peer_pods",
        "Pods that have the short cut, and pods without a veth that ends here",
        lambda: [({"state": "on"}, len(redirect.slots)), ({"state": "left_out"}, len(redirect.left_out))],
    )


def watch_names(metrics: Metrics, dns: DnsServer) -> None:
    """Questions of pods to name servers."""
    metrics.registry.register(dns.counts)
    metrics.value("gauge", "ambient_dns_outstanding", "Questions passed on", lambda: dns.outstanding)
    metrics.value("counter", "ambient_dns_strange", "Answers to nothing asked", lambda: dns.upstream.strange)


def watch_log(metrics: Metrics, writer: LineWriter) -> None:
    """Lines that nobody could take in time."""
    metrics.value("counter", "ambient_log_lines_dropped", "Log lines lost", lambda: writer.dropped)


def watch_tasks(metrics: Metrics) -> None:
    """The event loop."""
    metrics.value(
        "gauge", "ambient_tasks", "Tasks alive", lambda: trio.lowlevel.current_statistics().tasks_living
    )
    metrics.value(
        "gauge",
        "ambient_tasks_runnable",
        "Tasks ready",
        lambda: trio.lowlevel.current_statistics().tasks_runnable,
    )
