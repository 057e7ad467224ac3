"""The agent: its parts connected, started in order, and stopped.

First everything that a decision needs; then xDS; when the first state is here, enrolment: no pod is enrolled before the
agent knows whom it may talk to.
"""

from __future__ import annotations

import logging
import os
import signal
import time

import trio

from ebpf import netns
from ebpf.capture import Capture, PodNetwork
from ebpf.errors import CaptureError
from hbone.engine import Engine
from ztunnel import collector, http1, pages, parts, telemetry
from ztunnel.accesslog import AccessLog
from ztunnel.admit import Verdicts
from ztunnel.carry import Carrier
from ztunnel.config import Config
from ztunnel.crl import CrlFile
from ztunnel.departure import Departure
from ztunnel.direct.keeper import Keeper, Scissors
from ztunnel.dns.lookup import Names
from ztunnel.dns.server import DnsServer
from ztunnel.enrol.pods import Pods
from ztunnel.enrol.settings import CaptureSettings
from ztunnel.enrol.source import PodSource
from ztunnel.flows.redecide import Redecider
from ztunnel.flows.registry import Registry
from ztunnel.inbound import Inbound
from ztunnel.logs import LineWriter, fields
from ztunnel.metrics import Metrics
from ztunnel.outbound import Outbound
from ztunnel.pump import Pump
from ztunnel.readiness import Readiness
from ztunnel.resolver import Resolver
from ztunnel.state.model import TunnelProtocol
from ztunnel.state.snapshot import Changes, Snapshot
from ztunnel.store import Store

__all__ = ["Agent"]

_log = logging.getLogger("ztunnel.app")
_COUNTERS = 1.0


class Agent:
    """Every part of the agent, connected. run() starts them; stop() begins the drain."""

    def __init__(
        self, config: Config, *, capture: Capture, engine: Engine, writer: LineWriter, version: str
    ) -> None:
        self.config, self.capture, self.engine, self.version = config, capture, engine, version
        self.store = Store(config.node_name, before_change=engine.forget)
        self.metrics = Metrics(str(config.proxy_metadata.get("ISTIO_VERSION", "")) or version)
        self.access_log = AccessLog(writer, as_json=config.log_format == "json")
        self.flows = Registry(self.metrics.traffic, self.access_log)
        self.carrier = Carrier(engine, self.flows)
        scissors = Scissors(engine, lambda: self.direct)
        self.redecider = Redecider(
            self.flows, scissors, lambda: self.store.snapshot, grace=config.policy_wait
        )
        self.verdicts = Verdicts(
            engine, self.flows, lambda: self.store.snapshot, self.redecider.again, engine.config.workers
        )
        self.xds = parts.xds_client(config, self.store)
        self.identities = parts.identity_manager(config, engine)
        names = Names(config.cluster_domain, config.preferred_namespace)
        self.dns = DnsServer(self.store, names, network=config.network, ipv6=config.ipv6_enabled)
        self.pods = Pods(
            capture=capture,
            engine=engine,
            identities=self.identities,
            network_of=self._network_of,
            trust_domain_of=self._trust_domain_of,
            names=self.dns,
            certificate_wait=config.certificate_wait,
        )
        self.source = PodSource(config, self.pods, capture.is_succeeded)
        self.pump = self._pump()
        self.crl = CrlFile(config.crl_path, engine) if config.crl_path is not None else None
        self.readiness = self._readiness()
        self._stopping = trio.Event()
        self._retired = False
        self.metrics.traffic.shows_path = not config.same_node_encryption
        self.direct = Keeper(
            capture.direct,
            self.pods,
            self.flows,
            self.access_log,
            enabled=not config.same_node_encryption,
            network=config.network,
            current=lambda: self.store.snapshot,
            monotonic=time.monotonic,
            redirect_peer=config.redirect_peer,
        )
        # First: the redecider has to find the connections that were begun until now.
        self.store.subscribe(self.direct.changed)
        self.store.subscribe(self.redecider.changed)
        self.store.subscribe(self._local_pods_changed)
        self._watch(writer)

    # Building

    def _pump(self) -> Pump:
        outbound = Outbound(
            carrier=self.carrier,
            verdicts=self.verdicts,
            store=self.store,
            identities=self.identities,
            config=self.config,
            ask=self.xds.ask if self.xds is not None and self.config.xds_on_demand else None,
            resolve=Resolver(),
            dial_mark=self.capture.dial_mark,
        )
        return Pump(
            engine=self.engine,
            pods=self.pods,
            outbound=outbound,
            inbound=Inbound(
                carrier=self.carrier, verdicts=self.verdicts, store=self.store, config=self.config
            ),
            verdicts=self.verdicts,
            flows=self.flows,
            access_log=self.access_log,
        )

    def _readiness(self) -> Readiness:
        chosen = self.capture.chosen
        how = f"capture: variant {chosen.variant} ({chosen.why}): {chosen.reason}"
        notes = [lambda: how, self.source.note]
        if self.config.redirect_peer:
            notes.append(self._shortcut_note)
        readiness = Readiness(*notes)
        readiness.require("shutdown", lambda: not self._stopping.is_set())
        if self.xds is not None:
            readiness.require("state manager", self.xds.ready.is_set)
        if self.source.exists:
            readiness.require("proxy manager", lambda: self.pods.is_connected and self.pods.snapshot_done)
            readiness.require("pending pods", lambda: not self.pods.pending)
        readiness.require("revocation lists", lambda: self.crl is None or self.crl.usable)
        readiness.require("certificates", lambda: not self.identities.expired)
        return readiness

    def _shortcut_note(self) -> str:
        return self.direct.shortcut.note()

    def _watch(self, writer: LineWriter) -> None:
        if self.xds is not None:
            telemetry.watch_control_plane(self.metrics, self.xds, lambda: self.store.snapshot.version)
        telemetry.watch_pods(self.metrics, self.pods, self.source)
        telemetry.watch_identities(self.metrics, self.identities)
        telemetry.watch_flows(self.metrics, self.flows, self.carrier, self.redecider, self.pump)
        telemetry.watch_engine(self.metrics, self.engine)
        telemetry.watch_capture(self.metrics, self.capture)
        telemetry.watch_names(self.metrics, self.dns)
        telemetry.watch_log(self.metrics, writer)
        telemetry.watch_tasks(self.metrics)

    # What the parts ask of each other

    def _network_of(self, netns_fd: int, settings: CaptureSettings) -> PodNetwork:
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            node_addresses = netns.addresses(home)
        finally:
            os.close(home)
        return PodNetwork(
            netns_fd,
            netns.addresses(netns_fd),
            node_addresses,
            exempt_inbound_ports=self.config.exempt_inbound | settings.exclude_inbound,
            exempt_outbound_ports=self.config.exempt_outbound | settings.exclude_outbound,
            only_inbound_ports=settings.include_inbound,
            bypass_inbound=settings.bypass_inbound,
            dns=self.config.captures_dns_of(settings.dns_capture),
        )

    def _trust_domain_of(self, namespace: str, name: str, service_account: str) -> str:
        workload = self.store.snapshot.local_workload(namespace, service_account, name)
        return workload.trust_domain if workload is not None else self.config.trust_domain

    def _local_pods_changed(self, changes: Changes, snapshot: Snapshot) -> None:
        """Certificates for this node's pods are fetched before the first connection asks for them."""
        if self._stopping.is_set():
            return  # who comes now is a successor's
        for uid in changes.workloads:
            workload = snapshot.workload(uid)
            meshed = workload is not None and (
                workload.tunnel_protocol is TunnelProtocol.HBONE or workload.native_tunnel
            )
            if workload is not None and meshed and workload.node == self.config.node_name:
                self.identities.hold(f"workload {uid}", workload.identity)
            else:
                self.identities.release(f"workload {uid}")
        if changes.workloads:
            self.pods.refresh_identities()

    # Life

    def stop(self) -> None:
        """Begin the drain; run() returns when it is over."""
        self._stopping.set()

    async def run(self, listeners: pages.Listeners) -> None:
        """Serve until stop(), then drain."""
        async with trio.open_nursery() as nursery:
            served = await nursery.start(pages.serve, listeners, self._handlers())
            if self.crl is not None:
                await nursery.start(self.crl.run)  # before anybody may connect
            for part in (self.store.run, self.identities.run, self.carrier.run, self.redecider.run):
                nursery.start_soon(part)
            nursery.start_soon(self.pump.run)
            nursery.start_soon(self._count)
            nursery.start_soon(self.pods.release_left)
            nursery.start_soon(self.pods.accept_tunnels)
            if self.xds is not None:
                nursery.start_soon(self.xds.run)
            direct = await nursery.start(self._direct)
            await nursery.start(self.dns.run)
            enrolment = await nursery.start(self._enrolment)
            nursery.start_soon(self._signals)
            await self._stopping.wait()
            departure = self._departure()
            await departure.successor()
            self._retired = True
            enrolment.cancel()
            # A successor that shares the ports answers from now on.
            served.cancel()
            handed_over = bool(await trio.to_thread.run_sync(self.capture.handed_over))
            if handed_over:
                direct.cancel()
                await self._serve_aside(nursery)
            await departure.drain(handed_over=handed_over)
            nursery.cancel_scope.cancel()

    def _departure(self) -> Departure:
        return Departure(
            self.config,
            self.capture,
            self.engine,
            self.pods,
            self.flows,
            self.direct,
            self.carrier,
            self.pump,
        )

    async def _serve_aside(self, nursery: trio.Nursery) -> None:
        """Pages of the connections that stay with this process, on loopback ports that the log names."""
        aside = pages.open_aside()
        await nursery.start(pages.serve, aside, self._handlers())
        ports = {name: opened[0].socket.getsockname()[1] for name, opened in aside.items()}
        _log.info("a successor has the pods", extra=fields(**ports))

    def _handlers(self) -> dict[str, http1.Handler]:
        view = pages.View(
            config=self.config,
            version=self.version,
            engine=self.engine,
            store=self.store,
            identities=self.identities,
            pods=self.pods,
            flows=self.flows,
            metrics=self.metrics,
            readiness=self.readiness,
            capture=self.capture.chosen,
            shortcut=self.direct.shortcut,
            goes_direct=self.direct.goes_direct,
            source=self.source,
            stop=self.stop,
        )
        return pages.handlers(view)

    def _mend(self) -> None:
        try:
            if lost := self.capture.mend():
                _log.error("pins were removed under this agent, and are back", extra=fields(pins=len(lost)))
        except CaptureError as error:
            _log.error(
                "pins were removed under this agent: pods may be in clear", extra=fields(error=str(error))
            )

    async def _count(self) -> None:
        while True:
            await trio.sleep(_COUNTERS)
            self.flows.count(self.engine.counters())
            if not self._retired:
                await trio.to_thread.run_sync(self.capture.renew)
                await trio.to_thread.run_sync(self._mend)
                if regained := await trio.to_thread.run_sync(self.capture.reclaim):
                    _log.warning(
                        "a successor has gone, its pods are served again", extra=fields(pods=regained)
                    )

    async def _enrolment(self, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            async with trio.open_nursery() as nursery:
                await collector.settle(self._first_state)
                await self._first_state()
                nursery.start_soon(self.pods.retry)
                nursery.start_soon(self.pods.follow_addresses)
                nursery.start_soon(self.source.run)

    async def _first_state(self) -> None:
        if self.xds is not None:
            await self.xds.ready.wait()

    async def _direct(self, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            await self.direct.run()

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for number in received:
                if self._stopping.is_set():
                    _log.warning("second signal, leaving at once")
                    os._exit(1)
                _log.info("draining", extra=fields(signal=signal.Signals(number).name))
                self.stop()
