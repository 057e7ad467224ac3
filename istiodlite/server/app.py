"""Puts the parts together: source -> registry -> streams; pods -> CA; status."""

import errno
import gc
import logging
import signal
import time
from collections import Counter
from concurrent.futures import Future
from typing import Any

import trio
from prometheus_client import generate_latest

from istiodlite.ca import service as ca_service
from istiodlite.ca.authorize import Trust
from istiodlite.ca.pods import PodIndex
from istiodlite.ca.service import Authenticator, CertificateService
from istiodlite.ca.serving import ServingCertificate
from istiodlite.metrics import Metrics
from istiodlite.objects import KubeObject, ObjectKey
from istiodlite.registry import Registry
from istiodlite.registry.resource import short_type
from istiodlite.registry.scope import Scope
from istiodlite.server.config import ServeConfig, StartError
from istiodlite.server.debounce import Debounce
from istiodlite.server.grpc_thread import GrpcThread
from istiodlite.server.inputs import Inputs, open_inputs
from istiodlite.server.names import serving_names
from istiodlite.server.present import condition_values, overview
from istiodlite.server.status import Page, StatusServer
from istiodlite.sources.folder import Batch
from istiodlite.webhook import WebhookServer, review
from istiodlite.xds import server as xds_server
from istiodlite.xds.server import DiscoveryService

_log = logging.getLogger("istiodlite")


class ControlPlane:
    """State of the main thread. `run` serves until cancelled or a signal comes."""

    def __init__(self, config: ServeConfig, inputs: Inputs) -> None:
        self.config = config
        self.metrics = Metrics()
        self.metrics.source_age.set_function(inputs.source.age)
        self._inputs = inputs
        self.registry = Registry(config.mesh)
        self._scope = Scope(config.mesh.discovery_selectors, config.mesh.root_namespace)
        # Replaced as a whole, so that the gRPC thread may read it at any time.
        self.pods = PodIndex()
        self.errors: tuple[Any, ...] = ()
        self.ready = False
        self._failure: StartError | None = None
        self._complete = trio.Event()
        self._waiting: dict[ObjectKey, KubeObject | None] = {}
        self._debounce = Debounce(config.debounce_quiet, config.debounce_longest)
        self._noted = trio.Event()
        authority = inputs.authority
        authenticator = Authenticator(inputs.review, self.metrics)
        trust = Trust(config.mesh.trust_domain, config.trusted_node_accounts)
        certificates = CertificateService(authority, authenticator, trust, lambda: self.pods, self.metrics)
        self.discovery = DiscoveryService(authenticator, self.metrics, inputs.machines)
        serving = ServingCertificate(authority, self._names)
        self._webhook = WebhookServer(serving, self._review)
        self._grpc = GrpcThread(
            config.listen,
            serving,
            {
                ca_service.PATH: certificates.handler(),
                xds_server.PATH: self.discovery.handler(),
                xds_server.SOTW_PATH: self.discovery.sotw_handler(),
            },
            self.discovery.stop,
        )

    def _names(self) -> list[str]:
        config = self.config
        return serving_names(
            config.listen[0], config.mesh.root_namespace, config.mesh.domain, config.extra_names
        )

    async def run(self) -> None:
        """Raises StartError if a port is taken."""
        listeners: list[trio.SocketListener] = []
        hooks: list[trio.SocketListener] = []
        try:
            listeners += await _listen(self.config.status, "--status-port")
            hooks += await _listen(self.config.webhook, "--webhook-port") if self.config.webhook else []
            status = StatusServer(self._pages(), open_debug=self.config.open_debug)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_signal, nursery.cancel_scope)
                nursery.start_soon(trio.serve_listeners, status.handle, listeners)
                nursery.start_soon(self._inputs.source.run, self._take)
                for task in self._inputs.tasks:
                    nursery.start_soon(task)
                # Nothing is served before all is known: half a mesh would lift policies.
                await self._complete.wait()
                self._load()
                if hooks:
                    nursery.start_soon(trio.serve_listeners, self._webhook.connection, hooks)
                await self._serve(nursery)
            if self._failure is not None:
                raise self._failure
        finally:
            self.ready = False
            for listener in (*listeners, *hooks):
                await trio.aclose_forcefully(listener)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._grpc.stop)
            _log.info("stopped")

    async def _serve(self, nursery: trio.Nursery) -> None:
        try:
            port = await trio.to_thread.run_sync(self._grpc.start)
        except StartError as error:
            self._failure = error
            nursery.cancel_scope.cancel()
            return
        _log.info("serving xDS and certificates on %s:%d", self.config.listen[0], port)
        self.ready = True
        nursery.start_soon(self._end_with_grpc, nursery.cancel_scope)
        nursery.start_soon(self._push_when_due)

    async def _review(self, body: Any) -> dict[str, Any]:
        """Raises BadReview."""
        objects = dict(self.registry.objects)
        answer = await trio.to_thread.run_sync(review, body, objects, self.config.mesh)
        self.metrics.reviews.labels(str(answer["response"]["allowed"]).lower()).inc()
        return answer

    async def _end_with_grpc(self, scope: trio.CancelScope) -> None:
        """Half a control plane is worse than a restart."""
        await trio.to_thread.run_sync(self._grpc.join, abandon_on_cancel=True)
        self._failure = StartError("the gRPC server ended by itself; see the log, and start again")
        scope.cancel()

    def _take(self, batch: Batch) -> None:
        """Certificates follow objects at once: an agent asks as soon as its pod is there. Resources wait
        for the quiet time."""
        for error in batch.new_errors:
            _log.error("%s", error)
        self.errors = batch.errors
        self.metrics.object_errors.set(len(batch.errors))
        self._inputs.note(batch)
        self._complete.set()
        if batch.changes:
            self.pods = self.pods.apply(batch.changes)
            self._waiting.update(batch.changes)
            self._debounce.note(time.monotonic())
            self._noted.set()

    async def _push_when_due(self) -> None:
        while True:
            await self._noted.wait()
            self._noted = trio.Event()
            while (due := self._debounce.due()) is not None:
                delay = due - time.monotonic()
                if delay <= 0:
                    self._push()
                else:
                    await trio.sleep(delay)

    def _load(self) -> None:
        """The first push. Nothing of it is garbage: going through it again and again would take as long as
        making it, and later each full collection would stop everything for half a second."""
        gc.disable()
        try:
            self._push()
        finally:
            gc.enable()
        gc.freeze()

    def _count(self) -> None:
        """How many there are of what, for the page that shows it."""
        self.metrics.objects.clear()
        self.metrics.resources.clear()
        for kind, count in Counter(key.kind for key in self.registry.objects).items():
            self.metrics.objects.labels(kind).set(count)
        for type_url, count in Counter(key[0] for key in self.registry.resources).items():
            self.metrics.resources.labels(short_type(type_url)).set(count)

    def _push(self) -> None:
        seen = self._debounce.take()
        batch, self._waiting = self._waiting, {}
        begin = time.monotonic()
        changes = self.registry.apply(self._scope.narrow(batch))
        self._inputs.pushed(self.registry)
        self.metrics.batches.inc()
        self.metrics.build_time.observe(time.monotonic() - begin)
        if changes:
            _log.info(
                "%d objects changed: %d resources new or changed, %d removed",
                len(batch),
                len(changes.changed),
                len(changes.removed),
            )
            self._grpc.call(lambda: self.discovery.publish(changes, seen)).add_done_callback(_log_failure)

    def _pages(self) -> dict[str, Any]:
        async def ready() -> Page:
            return Page("ready\n") if self.ready else Page("not ready\n", 503)

        async def metrics() -> Page:
            self._count()
            for part in self._inputs.source.describe():
                self.metrics.resource_age.labels(part["resource"]).set(part["ageSeconds"])
            return Page(generate_latest(self.metrics.registry), content_type="text/plain; version=0.0.4")

        async def resources() -> Page:
            return Page(await trio.to_thread.run_sync(overview, dict(self.registry.resources)))

        async def clients() -> Page:
            asked = self._grpc.call(self.discovery.clients)
            return Page(await trio.to_thread.run_sync(asked.result))

        async def source() -> Page:
            return Page({"parts": self._inputs.source.describe(), **self._inputs.describe()})

        async def errors() -> Page:
            conditions = [one for one in self.registry.conditions() if not one.status]
            return Page(
                {
                    "errors": [str(error) for error in self.errors],
                    "conditions": condition_values(conditions),
                }
            )

        async def conditions() -> Page:
            return Page(condition_values(self.registry.conditions()))

        return {
            "/ready": ready,
            "/metrics": metrics,
            "/debug/resources": resources,
            "/debug/clients": clients,
            "/debug/source": source,
            "/debug/errors": errors,
            "/debug/conditions": conditions,
        }


async def serve(config: ServeConfig) -> None:
    """Serves until a signal comes. Raises StartError, DataError."""
    async with open_inputs(config) as inputs:
        await ControlPlane(config, inputs).run()


def _log_failure(result: "Future[None]") -> None:
    error = result.exception()
    if error is not None:
        _log.error("a batch was not published", exc_info=error)


async def _listen(address: tuple[str, int], option: str) -> list[trio.SocketListener]:
    host, port = address
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        reason = "the port is taken" if error.errno == errno.EADDRINUSE else str(error.strerror or error)
        raise StartError(f"cannot listen on {host}:{port}: {reason}; use {option}") from None


async def _until_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            _log.info("stopping: %s", signal.Signals(number).name)
            scope.cancel()
            return
