"""The mesh as it is now, and the loop that makes it what the manifests ask for.

All state lives in one trio thread. Whatever changes anything calls `changed`; the loop then looks at
everything again: enrolment, the objects folder, names and ClusterIPs, and the steps that `plan` gives.
"""

import contextlib
import datetime
import logging
import shutil
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import trio

from daemonset.local import enrolment, network, plan
from daemonset.local.addresses import NODES, Address, RangeExhausted, Ranges, next_free, next_number
from daemonset.local.allocate import cluster_ips
from daemonset.local.credentials import TOKEN_SECONDS, write_root, write_token
from daemonset.local.desired import EMPTY, Desired, Key, NodeSpec, PodTemplate
from daemonset.local.endpoints import PodEndpoint
from daemonset.local.enrolment import Step
from daemonset.local.folder import ObjectFolder
from daemonset.local.kubelet import Pod
from daemonset.local.layout import Layout
from daemonset.local.names import FABRIC_CGROUP, NETNS_DIR, fabric_netns, mesh_cgroup
from daemonset.local.node import Node, control_plane
from daemonset.local.objects import all_objects
from daemonset.local.processes import Service, cut_log
from daemonset.local.publish import Names
from daemonset.local.rollout import UpgradeFailed, replace_agent
from daemonset.local.sandbox import make_sandbox, place_pod, unmake_sandbox
from daemonset.local.schedule import Unschedulable
from daemonset.local.zds import Added, Event, PodIdentity, Removed
from daemonset.local.zdsserver import ZdsServer
from istiodlite.ca.files import DataError

log = logging.getLogger(__name__)
HOUSEKEEPING_SECONDS = 30.0
TRY_AGAIN_SECONDS = 5.0


def timestamp() -> str:
    """Now, as Kubernetes writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Mesh:
    """See the module. `with_mesh` False: no agents and no control plane, a plain cluster network."""

    def __init__(self, layout: Layout, ranges: Ranges, cgroup_mount: Path, *, with_mesh: bool) -> None:
        self.layout, self.ranges, self.cgroup_mount = layout, ranges, cgroup_mount
        self.with_mesh = with_mesh
        self.desired: Desired = EMPTY
        self.nodes: dict[str, Node] = {}
        self.pods: dict[Key, Pod] = {}
        self.addresses: dict[Key, tuple[str, ...]] = {}
        self.ages: dict[tuple[str, str, str], str] = {}
        self.control_plane: Service | None = None
        self.problem = ""
        self.listeners: list[Callable[[str], None]] = []
        self._asked = self._done = 0  # requests taken over, and those that a whole round has seen
        self.round_done = trio.Event()
        self._dirty = trio.Event()
        self._names = Names(ranges, layout.hosts)
        self._folder = ObjectFolder(layout.objects)
        self._nursery: trio.Nursery | None = None

    # -- for others --------------------------------------------------------------------------------

    def changed(self) -> None:
        """Look at everything again."""
        self._dirty.set()

    def announce(self, text: str) -> None:
        """Tells whoever listens what is being done."""
        log.info("%s", text)
        for listener in self.listeners:
            listener(text)

    def config_map(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """For pods' environments."""
        return self.desired.config_maps.get((namespace, name))

    def secret(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """For pods' environments."""
        return self.desired.secrets.get((namespace, name))

    def services(self) -> list[Service]:
        """The mesh's own programs."""
        nodes = self.nodes.values()
        found = [self.control_plane, *(s for n in nodes for s in (n.names, n.agent, n.keeper, *n.former))]
        return [service for service in found if service is not None]

    def current(self) -> plan.Current:
        """What exists, in the planner's words."""
        pods = {k: plan.CurrentPod(p.template, p.sandbox.node, _phase(p)) for k, p in self.pods.items()}
        return plan.Current({n: node.spec for n, node in self.nodes.items()}, pods)

    def settled(self) -> bool:
        """Whether everything is as it should be, enrolment included."""
        steady = (Step.IN, Step.OUT)
        return (
            self._done == self._asked
            and not self._dirty.is_set()
            and all(node.agent_connected for node in self.nodes.values() if node.agent is not None)
            and plan.converged(self.desired, self.current())
            and all(p.enrolment.step in steady for p in self.pods.values())
            and all(
                (p.enrolment.step is Step.IN) == p.wants_enrolment
                for p in self.pods.values()
                if not p.finished
            )
        )

    def concluded(self) -> bool:
        """Whether there is nothing to wait for: all is settled, or a round on the latest request met a problem."""
        return self.settled() or (bool(self.problem) and self._done == self._asked)

    def apply(self, desired: Desired) -> list[str]:
        """Takes over what is asked for; notes for the user.

        Raises AddressConflict or Unschedulable, and then nothing has changed.
        """
        addresses = cluster_ips(desired.services.values(), self.addresses, self.ranges)
        plan.plan(desired, self.current())
        if len(desired.nodes) > NODES:
            raise Unschedulable(f"{len(desired.nodes)} nodes are asked for; at most {NODES} are possible")
        now = timestamp()
        self.ages = {k: self.ages.get(k, now) for k in map(_object_key, desired.objects)}
        notes = _notes_on_config(self.desired, desired)
        self.desired, self.addresses = desired, addresses
        self._asked += 1
        self.changed()
        return notes

    # -- life --------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then all pods and programs have been ended."""
        await trio.to_thread.run_sync(self._make_fabric)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self.with_mesh:
                cgroup = mesh_cgroup(self.cgroup_mount, self.layout.mesh) / FABRIC_CGROUP / "istiodlite"
                self.control_plane = control_plane(self.layout, self.ranges, cgroup, self.changed)
                nursery.start_soon(self.control_plane.run)
            nursery.start_soon(self._housekeeping)
            task_status.started()
            await self._converge()

    def _make_fabric(self) -> None:
        network.make_fabric(NETNS_DIR / fabric_netns(self.layout.mesh), self.ranges)
        if self.with_mesh:
            write_root(self.layout.data, self.layout.root_cert)

    async def _housekeeping(self) -> None:
        renewed = trio.current_time()
        while True:
            await trio.sleep(HOUSEKEEPING_SECONDS)
            for file in self.layout.log("x").parent.rglob("*.log"):
                await trio.to_thread.run_sync(cut_log, file)
            if self.with_mesh:
                with contextlib.suppress(DataError):  # istiodlite says the same in its log
                    await trio.to_thread.run_sync(write_root, self.layout.data, self.layout.root_cert)
            if self.with_mesh and trio.current_time() - renewed > TOKEN_SECONDS / 3:
                renewed = trio.current_time()
                for node in list(self.nodes.values()):
                    with contextlib.suppress(OSError):  # the node may be going; the next round tries again
                        write_token(self.layout.data, node.folder / "token", node.agent_identity)

    async def _converge(self) -> None:
        while True:
            self._dirty, asked = trio.Event(), self._asked
            self._advance_enrolment(trio.current_time())
            self._folder.sync(all_objects(self))
            for node in self.nodes.values():
                if node.zds is not None:
                    node.zds.poke()
            self.problem = await self._names.publish(
                self.nodes.values(), self.desired, self.addresses, self.endpoints()
            )
            await self._take_steps()
            self._done = asked
            self.round_done.set()
            self.round_done = trio.Event()
            with trio.move_on_at(self._next_deadline()):
                await self._dirty.wait()

    def _next_deadline(self) -> float:
        if self.problem:
            return trio.current_time() + TRY_AGAIN_SECONDS
        timed = (Step.LEAVING, Step.FAILED)
        return min(
            (p.enrolment.until for p in self.pods.values() if p.enrolment.step in timed), default=float("inf")
        )

    # -- enrolment ---------------------------------------------------------------------------------

    def _advance_enrolment(self, now: float) -> None:
        for pod in self.pods.values():
            labels = self.desired.namespaces.get(pod.template.namespace, {})
            pod.wants_enrolment = (
                self.with_mesh and enrolment.wanted(pod.template, labels) and not pod.finished
            )
            node = self.nodes[pod.sandbox.node]
            before = pod.enrolment
            if pod.networked:
                state = enrolment.advance(before, pod.wants_enrolment, now, gone=pod.exited)
                if state.step is Step.REMOVING and (node.zds is None or not node.zds.concerns(pod.uid)):
                    state = enrolment.removed(
                        state
                    )  # never told, or gone: the next snapshot will not have it
                pod.set_enrolment(state)
            if before.step is Step.FAILED and pod.enrolment.step is Step.ADDING and node.zds is not None:
                node.zds.repeat(pod.uid)

    def _wanted_on(self, node: str) -> dict[str, PodIdentity]:
        return {
            p.uid: PodIdentity(
                p.uid,
                p.template.name,
                p.template.namespace,
                p.template.service_account,
                enrolment.capture(p.template),
            )
            for p in self.pods.values()
            if p.sandbox.node == node and p.enrolment.told
        }

    def _netns_of(self, uid: str) -> Path | None:
        return next((p.sandbox.netns for p in self.pods.values() if p.uid == uid), None)

    def _enrolment_event(self, event: Event) -> None:
        pod = next(
            (p for p in self.pods.values() if isinstance(event, Added | Removed) and p.uid == event.uid), None
        )
        if pod is None:
            return
        name = f"{pod.template.namespace}/{pod.template.name}"
        if isinstance(event, Added):
            was_in = pod.enrolment.step is Step.IN
            pod.set_enrolment(enrolment.added(pod.enrolment, event.error, trio.current_time()))
            self.announce(f"pod {name}: {_answer(event.error, was_in=was_in)}")
        else:
            pod.set_enrolment(enrolment.removed(pod.enrolment))
            if not pod.deleting:
                self.announce(f"pod {name}: no longer enrolled")
        self.changed()

    # -- names and ClusterIPs ----------------------------------------------------------------------

    def endpoints(self) -> list[PodEndpoint]:
        """All pods with an address, as services see them."""
        return [
            PodEndpoint(
                p.template.namespace,
                p.template.name,
                p.template.labels,
                p.sandbox.node,
                p.sandbox.addresses,
                p.ready,
                p.template.named_ports,
                str(p.template.spec.get("hostname") or ""),
                str(p.template.spec.get("subdomain") or ""),
            )
            for p in self.pods.values()
            if p.networked and not p.finished and not p.deleting
        ]

    # -- steps -------------------------------------------------------------------------------------

    async def _take_steps(self) -> None:
        try:
            steps = plan.plan(self.desired, self.current())
        except Unschedulable as error:
            self.problem = str(error)
            return
        for step in steps:
            try:
                await self._take(step)
            except (OSError, RangeExhausted, DataError) as error:
                log.exception("%s", step)
                self.problem = f"{_what(step)}: {error}"
                return

    async def _take(self, step: plan.Action) -> None:
        match step:
            case plan.AddNode(spec):
                await self._add_node(spec)
            case plan.UpdateNode(spec):
                self.nodes[spec.name].spec = spec
                self.changed()
            case plan.RemoveNode(name):
                await self._remove_node(name)
            case plan.StartPod(template, node):
                self._start_pod(template, self.nodes[node])
            case plan.UpdatePod(template):
                self.pods[template.key].template = template
                self.changed()
            case plan.StopPod(key, why):
                self.announce(f"pod {'/'.join(key)}: stopped, {why}")
                self.pods[key].stop(why)

    async def _add_node(self, spec: NodeSpec) -> None:
        assert self._nursery is not None
        number = next_number({n.number for n in self.nodes.values()}, NODES)
        assert number is not None  # `apply` has counted
        node = Node(spec, number, self.ranges, self.layout, self.cgroup_mount, timestamp())
        await trio.to_thread.run_sync(lambda: node.make(with_mesh=self.with_mesh))
        others = [n.number for n in self.nodes.values()]
        await trio.to_thread.run_sync(network.set_pod_routes, node.netns, others, self.ranges)
        for other in self.nodes.values():
            await trio.to_thread.run_sync(network.set_pod_routes, other.netns, [number], self.ranges)
        self.nodes[spec.name] = node
        await self._nursery.start(self._run_node, node)
        self.announce(f"node {spec.name}: {node.addresses[0]}, pods in {self.ranges.pods(number)[0]}")
        self.changed()

    async def _run_node(self, node: Node, task_status: trio.TaskStatus[None]) -> None:
        with node.scope:
            async with trio.open_nursery() as nursery:
                node.programs = nursery
                node.names = node.name_server(self.changed)
                nursery.start_soon(node.names.run)
                if self.with_mesh:
                    await self._start_agent(node, nursery)
                task_status.started()

    async def _start_agent(self, node: Node, nursery: trio.Nursery) -> None:
        def connected(present: bool) -> None:
            node.agent_connected = present
            self.changed()

        node.zds = ZdsServer(
            node.folder / "zds.sock",
            lambda: self._wanted_on(node.name),
            self._netns_of,
            self._enrolment_event,
            connected,
        )
        await nursery.start(node.zds.serve)
        node.keeper = node.fd_store(self.changed)
        if node.keeper is not None:
            nursery.start_soon(node.keeper.run)
        node.agent = node.agent_service(self.changed)
        self._folder.sync(all_objects(self))  # the control plane has to know the agent before it asks
        nursery.start_soon(node.agent.run)

    async def upgrade(self, name: str) -> None:
        """A new agent for a node, without interruption. Raises UpgradeFailed."""
        node = self.nodes[name]
        if node.agent is None or node.programs is None:
            raise UpgradeFailed(f"node {name} has no agent")
        if node.upgrading:
            raise UpgradeFailed(f"the agent of node {name} is being replaced already")
        node.upgrading = True
        try:
            await replace_agent(node, node.agent_service(self.changed), node.programs)
        finally:
            node.upgrading = False
            self.changed()

    async def _remove_node(self, name: str) -> None:
        node = self.nodes.pop(name)
        node.scope.cancel()
        for other in self.nodes.values():
            await trio.to_thread.run_sync(network.drop_pod_routes, other.netns, node.number, self.ranges)
        for service in (node.names, node.agent, node.keeper, *node.former):
            if service is not None and service.process is not None:
                await service.process.wait()
        await trio.to_thread.run_sync(node.unmake)
        shutil.rmtree(node.folder, ignore_errors=True)
        self.announce(f"node {name}: removed")
        self.changed()

    def _start_pod(self, template: PodTemplate, node: Node) -> None:
        assert self._nursery is not None
        pod = self._make_pod(template, node)
        self.pods[template.key] = pod
        self.announce(
            f"pod {template.namespace}/{template.name}: starts on {node.name} ({pod.sandbox.addresses[0]})"
        )
        self._nursery.start_soon(self._run_pod, pod)
        self.changed()

    def _make_pod(self, template: PodTemplate, node: Node) -> Pod:
        own = node.addresses if template.host_network else self._pod_addresses(node)
        sandbox = place_pod(template, node, own)
        uid = str(uuid.uuid4())
        make = partial(make_sandbox, template, node, sandbox, uid)
        unmake = partial(unmake_sandbox, template, node, sandbox, uid)
        return Pod(template, uid, timestamp(), sandbox, self, make, unmake)

    def _pod_addresses(self, node: Node) -> tuple[Address, Address]:
        used = {a for p in self.pods.values() for a in p.sandbox.addresses}
        v4, v6 = self.ranges.pods(node.number)
        taken = {a for a in v4.hosts() if str(a) in used}
        first = next_free(v4, taken, node.last_pod_address)
        node.last_pod_address = first
        return first, v6[int(first) - int(v4.network_address)]

    async def _run_pod(self, pod: Pod) -> None:
        try:
            await pod.run()
        finally:
            del self.pods[pod.template.key]
            self.changed()


def _answer(error: str, *, was_in: bool) -> str:
    if was_in:
        return f"capture settings not in effect: {error}" if error else "capture settings changed"
    return f"not enrolled: {error}" if error else "enrolled"


def _phase(pod: Pod) -> plan.Phase:
    if pod.deleting:
        return plan.Phase.STOPPING
    if pod.finished:
        return plan.Phase.FINISHED
    return plan.Phase.READY if pod.ready else plan.Phase.STARTING


def _notes_on_config(old: Desired, new: Desired) -> list[str]:
    return [
        f"ConfigMap {'/'.join(key)} changed: running pods keep what they started with"
        for key, data in old.config_maps.items()
        if new.config_maps.get(key, data) != data
    ]


def _what(step: plan.Action) -> str:
    match step:
        case plan.AddNode(spec):
            return f"node {spec.name}"
        case plan.StartPod(template, _):
            return f"pod {template.namespace}/{template.name}"
        case _:
            return type(step).__name__


def _object_key(obj: Mapping[str, object]) -> tuple[str, str, str]:
    meta = obj["metadata"]
    assert isinstance(meta, Mapping)
    return str(obj["kind"]), str(meta.get("namespace", "")), str(meta["name"])
