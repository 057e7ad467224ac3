"""What the agent shows over HTTP: metrics, readiness, and the admin pages on loopback."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import trio

from ebpf.variants import Chosen
from hbone.connect import SocketAddress
from hbone.engine import Engine
from ztunnel import admin, config_dump, http1, whatif
from ztunnel.config import Config
from ztunnel.direct.shortcut import Shortcut
from ztunnel.dns import whatname
from ztunnel.dns.lookup import Names
from ztunnel.enrol.pods import Pods
from ztunnel.enrol.source import PodSource
from ztunnel.flows.registry import Registry
from ztunnel.identity.manager import IdentityManager
from ztunnel.metrics import Metrics
from ztunnel.readiness import Readiness
from ztunnel.store import Store

__all__ = ["Listeners", "View", "handlers", "open_aside", "open_ports", "serve"]

Listeners: TypeAlias = dict[str, list[trio.SocketListener]]


def open_ports(config: Config) -> Listeners:
    """The ports of metrics, readiness and admin pages; raises BindError. First of all: a second agent on the
    same node ends here, before it has touched anything."""
    wildcard = "::" if Path("/proc/net/if_inet6").exists() else "0.0.0.0"
    loopback = ["127.0.0.1", "::1"] if wildcard == "::" else ["127.0.0.1"]

    def listen(address: str, port: int, setting: str) -> trio.SocketListener:
        return http1.listen(address, port, setting=setting, shared=config.takeover)

    return {
        "stats": [listen(wildcard, config.stats_port, "STATS_PORT")],
        "readiness": [listen(wildcard, config.readiness_port, "READINESS_PORT")],
        "admin": [listen(address, config.admin_port, "ADMIN_PORT") for address in loopback],
    }


def open_aside() -> Listeners:
    """Any free ports on loopback, for an agent whose own have gone to its successor."""
    return {
        name: [http1.listen("127.0.0.1", 0, setting=name, shared=True)]
        for name in ("stats", "readiness", "admin")
    }


@dataclass(frozen=True, slots=True)
class View:
    """The parts that pages read, and the one thing they can do: `stop` begins the drain."""

    config: Config
    version: str
    engine: Engine
    store: Store
    identities: IdentityManager
    pods: Pods
    flows: Registry
    metrics: Metrics
    readiness: Readiness
    capture: Chosen
    shortcut: Shortcut
    goes_direct: Callable[[str, SocketAddress], bool]
    source: PodSource
    stop: Callable[[], None]

    def render_metrics(self, accept: str) -> tuple[bytes, str]:
        """The metrics as of now."""
        self.flows.count(self.engine.counters())
        return self.metrics.render(accept)

    def connections(self) -> list[dict[str, Any]]:
        """Live connections as of now."""
        self.flows.count(self.engine.counters())
        return config_dump.connections(self.flows, time.monotonic())

    def dump(self) -> dict[str, Any]:
        """Everything the agent holds."""
        return config_dump.config_dump(
            config=self.config,
            snapshot=self.store.snapshot,
            identities=self.identities,
            pods=self.pods,
            flows=self.flows,
            version=self.version,
        )

    def way(self, name: str, asked: SocketAddress) -> whatif.Way:
        """What the kernel does with a connection of the pod NAMESPACE/NAME to `asked`."""
        found = (pod.enrolled.network for pod in self.pods if pod.full_name == name)
        if any(asked.port in network.exempt_outbound_ports for network in found):
            return whatif.Way.SPARED
        return whatif.Way.DIRECT if self.goes_direct(name, asked) else whatif.Way.PROXY

    async def explain(self, request: http1.Request) -> http1.Response:
        """/explain?from=NS/POD&to=HOST:PORT; an answer 404 carries `error`."""
        try:
            answer = whatif.explain_connection(
                self.store.snapshot,
                source=request.query.get("from", ""),
                target=request.query.get("to", ""),
                network=self.config.network,
                cluster_domain=self.config.cluster_domain,
                way=self.way,
            )
        except whatif.QuestionError as error:
            return admin.as_json({"error": str(error)}, 404)
        return admin.as_json(answer.as_json())

    async def resolve(self, request: http1.Request) -> http1.Response:
        """/resolve?from=NS/POD&name=NAME; an answer 404 carries `error`."""
        try:
            answer = whatname.explain_name(
                self.store.snapshot,
                Names(self.config.cluster_domain, self.config.preferred_namespace),
                source=request.query.get("from", ""),
                name=request.query.get("name", ""),
                network=self.config.network,
            )
        except whatif.QuestionError as error:
            return admin.as_json({"error": str(error)}, 404)
        return admin.as_json(answer)

    async def quit(self, _request: http1.Request) -> http1.Response:
        """/quitquitquit."""
        self.stop()
        return http1.Response(200, "shutting down\n")


def handlers(view: View) -> dict[str, http1.Handler]:
    """The handler of each port."""
    return {
        "stats": admin.metrics_pages(view.render_metrics),
        "readiness": admin.readiness_pages(view.readiness.answer),
        "admin": _admin(view),
    }


def _admin(view: View) -> admin.Admin:
    pages = admin.Admin()
    pages.page("GET", "/config_dump", "everything the agent holds", admin.json_page(lambda _: view.dump()))
    pages.page("GET", "/connections", "live connections", admin.json_page(lambda _: view.connections()))
    capture = {field.name: getattr(view.capture, field.name) for field in fields(view.capture)}
    how = admin.json_page(lambda _: {**capture, "redirect_peer": view.shortcut.describe()})
    pages.page("GET", "/capture", "how pods are captured, and why so", how)
    enrolment = admin.json_page(lambda _: view.source.describe())
    pages.page("GET", "/enrolment", "who tells which pods are in, and which of them wait", enrolment)
    pages.page("GET", "/explain", "?from=NS/POD&amp;to=HOST:PORT", view.explain)
    pages.page("GET", "/resolve", "?from=NS/POD&amp;name=NAME", view.resolve)
    pages.page("POST", "/logging", "?level=info,xds=debug", admin.logging_page(view.config.log_level))
    pages.page("POST", "/quitquitquit", "drain and leave", view.quit)
    return pages


async def serve(
    listeners: Listeners,
    handlers: dict[str, http1.Handler],
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on every port until the scope given to `started` is cancelled."""
    async with trio.open_nursery() as nursery:
        task_status.started(nursery.cancel_scope)
        for name, handler in handlers.items():
            nursery.start_soon(http1.serve, listeners[name], handler)
