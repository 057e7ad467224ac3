"""The mesh as it is now, and the loop that makes it what the manifests ask for.

All state lives in one trio thread. Whatever changes anything calls `changed`; the loop then looks at
everything again: enrolment, the objects folder, names and ClusterIPs, and the steps that `plan` gives.
"""

import contextlib
import logging
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import trio

from daemonset.local import kubelet, network, plan
from daemonset.local.addresses import NODES, Address, RangeExhausted, Ranges, next_free
from daemonset.local.allocate import cluster_ips
from daemonset.local.credentials import TOKEN_SECONDS, write_root, write_token
from daemonset.local.desired import EMPTY, Desired
from daemonset.local.endpoints import PodEndpoint
from daemonset.local.folder import ObjectFolder
from daemonset.local.layout import Layout
from daemonset.local.names import FABRIC_CGROUP, NETNS_DIR, fabric_netns, mesh_cgroup
from daemonset.local.node import Node, control_plane
from daemonset.local.nodes import Nodes, timestamp
from daemonset.local.objects import all_objects
from daemonset.local.pods import Pod
from daemonset.local.processes import Service, cut_log
from daemonset.local.publish import Names
from daemonset.local.roster import Roster
from daemonset.local.sandbox import make_sandbox, place_pod, unmake_sandbox
from daemonset.local.schedule import Unschedulable
from daemonset.local.template import Key, PodTemplate
from istiodlite.ca.files import DataError

log = logging.getLogger(__name__)
HOUSEKEEPING_SECONDS = 30.0
TRY_AGAIN_SECONDS = 5.0


class Mesh:
    """See the module. `with_mesh` False: no agents and no control plane, a plain cluster network."""

    def __init__(self, layout: Layout, ranges: Ranges, cgroup_mount: Path, *, with_mesh: bool) -> None:
        self.layout, self.ranges, self.cgroup_mount = layout, ranges, cgroup_mount
        self.with_mesh = with_mesh
        self.desired: Desired = EMPTY
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
        self._roster = Roster(self.pods, self.changed, self.announce)
        self._nodes = Nodes(layout, ranges, cgroup_mount, self, self._roster, with_mesh=with_mesh)

    # -- for others --------------------------------------------------------------------------------

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The nodes that exist, by name."""
        return self._nodes.present

    def changed(self) -> None:
        """Look at everything again."""
        self._dirty.set()

    def announce(self, text: str) -> None:
        """Tells whoever listens what is being done."""
        log.info("%s", text)
        for listener in self.listeners:
            listener(text)

    def publish(self) -> None:
        """Writes the objects as they are now into the folder that the control plane reads."""
        self._folder.sync(all_objects(self))

    async def upgrade(self, name: str) -> None:
        """A new agent for a node, without interruption. Raises UpgradeFailed."""
        await self._nodes.upgrade(name)

    def config_map(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """For pods' environments."""
        return self.desired.config_maps.get((namespace, name))

    def secret(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """For pods' environments."""
        return self.desired.secrets.get((namespace, name))

    def services(self) -> list[Service]:
        """The mesh's own programs."""
        own = [self.control_plane] if self.control_plane is not None else []
        return [*own, *(service for node in self.nodes.values() for service in node.services())]

    def current(self) -> plan.Current:
        """What exists, in the planner's words."""
        pods = {k: plan.CurrentPod(p.template, p.sandbox.node, _phase(p)) for k, p in self.pods.items()}
        return plan.Current({n: node.spec for n, node in self.nodes.items()}, pods)

    def settled(self) -> bool:
        """Whether everything is as it should be, enrolment included."""
        return (
            self._done == self._asked
            and not self._dirty.is_set()
            and self._nodes.connected()
            and plan.converged(self.desired, self.current())
            and self._roster.settled()
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
            self._roster.advance(self.nodes, self.desired.namespaces if self.with_mesh else None)
            self.publish()
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
        return self._roster.next_deadline()

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
                assert self._nursery is not None
                await self._nodes.add(spec, self._nursery)
            case plan.UpdateNode(spec):
                self.nodes[spec.name].spec = spec
                self.changed()
            case plan.RemoveNode(name):
                await self._nodes.remove(name)
            case plan.StartPod(template, node):
                self._start_pod(template, self.nodes[node])
            case plan.UpdatePod(template):
                self.pods[template.key].template = template
                self.changed()
            case plan.StopPod(key, why):
                self.announce(f"pod {'/'.join(key)}: stopped, {why}")
                self.pods[key].stop(why)

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
            await kubelet.live(pod)
        finally:
            del self.pods[pod.template.key]
            self.changed()


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
