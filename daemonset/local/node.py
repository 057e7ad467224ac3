"""One node: its network, its name server, its agent and the agent's enrolment socket."""

import os
import shlex
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from daemonset.local import linux, nameserver, network
from daemonset.local.addresses import Address, Ranges
from daemonset.local.credentials import AGENT_ACCOUNT, AgentIdentity, write_token
from daemonset.local.desired import SYSTEM_NAMESPACE, NodeSpec
from daemonset.local.dnsnames import CONTROL_PLANE
from daemonset.local.layout import Layout
from daemonset.local.names import NETNS_DIR, fabric_netns, node_cgroup, node_netns
from daemonset.local.processes import Place, Service
from daemonset.local.programs import program_env
from daemonset.local.zdsserver import ZdsServer

CONTROL_PLANE_PORT = 15012
AGENT_GRACE = 2.0
HANDOVER_DEADLINE = "1h"
# Another agent than this installation's: Istio's own, or a test's. Read by `ambientctl up` that starts the mesh.
AGENT_COMMAND = "AMBIENT_AGENT_COMMAND"
FD_STORE = "AMBIENT_FD_STORE"
HANDED_ON = frozenset(
    {
        "RUST_LOG",
        "LOG_FORMAT",
        "SAME_NODE_ENCRYPTION",
        "AMBIENT_REDIRECT_PEER",
        "CRL_PATH",
        "SECRET_TTL",
        "AMBIENT_CAPTURE",
        "AMBIENT_HANDOVER_DEADLINE",
        FD_STORE,
    }
)
"""Settings of the agents that `ambientctl up` takes from its own environment."""


@dataclass
class Node:
    """A node that exists."""

    spec: NodeSpec
    number: int
    ranges: Ranges
    layout: Layout
    cgroup_mount: Path
    created: str
    agent_uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    names: Service | None = None
    agent: Service | None = None
    keeper: Service | None = None
    former: list[Service] = field(default_factory=list)
    generation: int = 0
    upgrading: bool = False
    programs: trio.Nursery | None = None
    zds: ZdsServer | None = None
    agent_connected: bool = False
    last_pod_address: Address | None = None
    rules: str = ""

    @property
    def name(self) -> str:
        """The node's name."""
        return self.spec.name

    @property
    def netns(self) -> Path:
        """The node's network namespace."""
        return NETNS_DIR / node_netns(self.layout.mesh, self.name)

    @property
    def fabric(self) -> Path:
        """The namespace between the nodes."""
        return NETNS_DIR / fabric_netns(self.layout.mesh)

    @property
    def cgroup(self) -> Path:
        """The node's cgroup: the agent attaches here."""
        return node_cgroup(self.cgroup_mount, self.layout.mesh, self.name)

    @property
    def folder(self) -> Path:
        """The node's files."""
        return self.layout.node(self.name)

    @property
    def addresses(self) -> tuple[Address, Address]:
        """The node's own addresses."""
        return self.ranges.node(self.number)

    @property
    def agent_identity(self) -> AgentIdentity:
        """The agent's pod."""
        return AgentIdentity(f"{AGENT_ACCOUNT}-{self.name}", self.agent_uid, self.name)

    def services(self) -> list[Service]:
        """Its programs; agents that drain are among them."""
        found = (self.names, self.agent, self.keeper, *self.former)
        return [service for service in found if service is not None]

    def make(self, *, with_mesh: bool) -> None:
        """Network, folder and, for the agent, a bpf file system of its own. Synchronous."""
        network.make_node(self.netns, self.fabric, self.name, self.number, self.ranges)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cgroup.mkdir(parents=True, exist_ok=True)
        if with_mesh:
            pins = self.folder / "bpf"
            pins.mkdir(exist_ok=True)
            linux.mount("bpf", pins, "bpf", data="mode=0700")
            write_token(self.layout.data, self.folder / "token", self.agent_identity)

    def unmake(self) -> None:
        """Takes back what `make` made. Synchronous."""
        linux.unmount(self.folder / "bpf")
        network.remove_node_link(self.fabric, self.name)
        network.drop_pod_routes(self.fabric, self.number, self.ranges)
        linux.remove_netns(self.netns)

    def name_server(self, changed: Callable[[], None]) -> Service:
        """The node's dnsmasq."""
        return Service(
            f"dns on {self.name}",
            nameserver.command(self.layout.hosts, self.ranges.dns),
            program_env(),
            Place(self.cgroup / "dns", self.netns),
            self.layout.log(f"dns-{self.name}"),
            grace=0,
            changed=changed,
        )

    def agent_service(self, changed: Callable[[], None]) -> Service:
        """The node's agent; each has a cgroup of its own, so that one can be ended beside another.

        All but the first may find their predecessor alive.
        """
        takeover = {"AMBIENT_TAKEOVER": "true"} if self.generation else {}
        place = Place(self.cgroup / "agent" / str(self.generation), self.netns)
        self.generation += 1
        return Service(
            f"ztunnel on {self.name}",
            shlex.split(os.environ.get(AGENT_COMMAND, ""))
            or [sys.executable, "-m", "ztunnel", "proxy", "ztunnel"],
            program_env() | self._agent_env() | takeover,
            place,
            self.layout.log(f"ztunnel-{self.name}"),
            grace=AGENT_GRACE,
            changed=changed,
        )

    def fd_store(self, changed: Callable[[], None]) -> Service | None:
        """What keeps the agent's listeners when it is killed; None if the user wants none."""
        if os.environ.get(FD_STORE) == "":
            return None
        return Service(
            f"fd store on {self.name}",
            [sys.executable, "-m", "ebpf.fdstore", "--socket", str(self._fd_store_socket)],
            program_env(),
            Place(self.cgroup / "fdstore"),
            self.layout.log(f"fdstore-{self.name}"),
            grace=0,
            changed=changed,
        )

    @property
    def _fd_store_socket(self) -> Path:
        return self.folder / "fdstore" / "socket"

    def _agent_env(self) -> dict[str, str]:
        server = f"https://{self.ranges.fabric[0]}:{CONTROL_PLANE_PORT}"
        identity = self.agent_identity
        return {
            "NODE_NAME": self.name,
            "POD_NAME": identity.pod,
            "POD_NAMESPACE": SYSTEM_NAMESPACE,
            "SERVICE_ACCOUNT": AGENT_ACCOUNT,
            "INSTANCE_IP": str(self.addresses[0]),
            "CLUSTER_ID": "Kubernetes",
            "NETWORK": "",
            "XDS_ADDRESS": server,
            "CA_ADDRESS": server,
            "ALT_XDS_HOSTNAME": CONTROL_PLANE,
            "ALT_CA_HOSTNAME": CONTROL_PLANE,
            "XDS_ROOT_CA": str(self.layout.root_cert),
            "CA_ROOT_CA": str(self.layout.root_cert),
            "AUTH_TOKEN": str(self.folder / "token"),
            "TERMINATION_GRACE_PERIOD_SECONDS": f"{AGENT_GRACE:g}",
            "AMBIENT_HANDOVER_DEADLINE": HANDOVER_DEADLINE,
            "INPOD_UDS": str(self.folder / "zds.sock"),
            "AMBIENT_CGROUP": str(self.cgroup),
            FD_STORE: str(self._fd_store_socket),
            "AMBIENT_PIN_DIR": str(self.folder / "bpf"),
            **{k: v for k, v in os.environ.items() if k.startswith("ZTUNNEL_") or k in HANDED_ON},
        }


def control_plane(layout: Layout, ranges: Ranges, cgroup: Path, changed: Callable[[], None]) -> Service:
    """istiodlite, in the fabric's namespace."""
    command: Sequence[str] = [
        sys.executable,
        "-m",
        "istiodlite",
        "serve",
        "--objects",
        str(layout.objects),
        "--data",
        str(layout.data),
        "--listen",
        f"{ranges.fabric[0]}:{CONTROL_PLANE_PORT}",
        "--trust-domain",
        "cluster.local",
    ]
    env: Mapping[str, str] = program_env()
    place = Place(cgroup, NETNS_DIR / fabric_netns(layout.mesh))
    return Service("istiodlite", command, env, place, layout.log("istiodlite"), changed=changed)
