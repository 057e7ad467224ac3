"""Istio's ztunnel, where ZTUNNEL_BIN names a binary of it (release profile): one process for each side.

Each runs in dedicated mode and reads the mesh that `ours` decides over from a file; certificates come from a
control plane of this project that the costs leave out. Its ports are fixed and taken on all addresses, so the
outbound side has a namespace of its own behind a veth link (which costs what loopback costs) and vanishes with it.
A ztunnel takes the address a connection was made to for its destination: the service has port 15001, so that nothing
needs to be redirected, as nothing is for `ours`.
"""

from __future__ import annotations

import datetime
import itertools
import os
import subprocess
import sys
from pathlib import Path

from istiodlite.ca.authority import Authority
from istiodlite.ca.caller import Caller
from istiodlite.ca.tokens import load_or_create_token_key, mint
from tests.bench.cases import Case
from tests.bench.certificates import CLIENT_ID, TRUST_DOMAIN
from tests.bench.mesh_state import NODE
from tests.bench.namespace import SERVER, SETTINGS
from tests.bench.testbed import ENTRY_PORT, HBONE_PORT, SERVER_PORT, Session
from tests.bench.variants.base import Variant

CONTROL_PORT, STATUS_PORT = 15012, 15014
_BYSTANDERS = 200
_numbers = itertools.count(1)

# Inside a new namespace: a link to the benchmark's own, the same settings, then the program.
_LINKED = """
ip link set lo up
ip link add al{n} type veth peer name alr{n} netns {netns}
ip address add 10.78.{n}.2/30 dev al{n}
ip address add {entry}/32 dev lo
ip link set al{n} up
ip -n {netns} address add {control}/30 dev alr{n}
ip -n {netns} link set alr{n} up
ip -n {netns} route add {entry}/32 via 10.78.{n}.2
ip route add {server}/32 via {control}
{settings}
exec "$@"
"""

_WORKLOAD = """\
- uid: Kubernetes//Pod/bench/{name}
  name: {name}
  namespace: bench
  trustDomain: {domain}
  serviceAccount: {account}
  workloadIps: [{address}]
  protocol: HBONE
  node: {node}
  network: ""
  workloadName: {name}
  workloadType: pod
  canonicalName: {name}
  canonicalRevision: v1
  clusterId: Kubernetes
  services: {services}
"""

_REST = """\
  authorizationPolicies: [bench/callers]
services:
- name: server
  namespace: bench
  hostname: server.bench.svc.cluster.local
  vips: [/{entry}]
  ports: {{{entry_port}: {server_port}}}
  canonical: true
policies:
- name: callers
  namespace: bench
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules:
  - - - principals: [!Exact "{caller}"]
    - - destinationPorts: [80, {server_port}]
"""


class RustZtunnel(Variant):
    """Two ztunnels as they come; `cold`: one stream for each tunnel."""

    name = "ztunnel"

    def absent(self) -> str | None:
        named = os.environ.get("ZTUNNEL_BIN")
        if not named:
            return "ZTUNNEL_BIN is not set"
        return None if os.access(named, os.X_OK) else f"ZTUNNEL_BIN={named} is not a program"

    def version(self) -> str | None:
        said = subprocess.run([os.environ["ZTUNNEL_BIN"], "version"], capture_output=True, text=True).stdout
        found = dict(part.split(":", 1) for part in said.replace('"', "").strip("}\n ").split(", "))
        names = ("GitRevision", "CryptoProvider", "BuildProfile")
        return " ".join(found.get(name, "?")[:40] for name in names)

    def start(self, session: Session, case: Case) -> None:
        number = next(_numbers)
        client, control, entry = self.addresses(number)
        folder = session.bed.work / f"ztunnel-{number}"
        (folder / "objects").mkdir(parents=True)
        self._control_plane(session, folder)
        (folder / "state.yaml").write_text(_state(client, entry))
        program = [str(Path(os.environ["ZTUNNEL_BIN"]).resolve()), "proxy", "ztunnel"]
        inbound = self._environment(folder, "server", "127.0.0.1", case)
        outbound = self._environment(folder, "client", control, case)
        session.spawn("ztunnel-inbound", [*inbound, *program], HBONE_PORT)
        linked = self.linked(session, number)
        # The inbound one listens on the same port: to see it must not be taken for the outbound one being ready.
        session.spawn("ztunnel-outbound", [*linked, *outbound, *program], ENTRY_PORT, apart=bool(linked))
        session.entry = f"{entry}:{ENTRY_PORT}"

    def addresses(self, number: int) -> tuple[str, str, str]:
        """Of the client's pod, the control plane as the client sees it, and the service."""
        return f"10.78.{number}.2", f"10.78.{number}.1", f"10.79.{number}.1"

    def linked(self, session: Session, number: int) -> list[str]:
        """What puts the outbound side into a namespace of its own."""
        _, control, entry = self.addresses(number)
        settings = "\n".join(f"echo '{value}' > /proc/sys/{key}" for key, value in SETTINGS.items())
        script = _LINKED.format(
            n=number,
            netns=session.bed.namespace.name,
            entry=entry,
            control=control,
            server=SERVER,
            settings=settings,
        )
        return ["unshare", "--net", "sh", "-ec", script, "sh"]

    def _control_plane(self, session: Session, folder: Path) -> None:
        """istiodlite, for certificates; beside it a token for each side."""
        data = folder / "data"
        authority = Authority.load_or_create(data, TRUST_DOMAIN)
        (folder / "roots.pem").write_bytes(authority.roots_pem)
        now = datetime.datetime.now(datetime.UTC)
        for account in ("client", "server"):
            token = mint(load_or_create_token_key(data), Caller("bench", account), now)
            (folder / f"{account}.token").write_text(token)
        where = ["--objects", str(folder / "objects"), "--data", str(data)]
        words = ["serve", *where, "--listen", f"0.0.0.0:{CONTROL_PORT}", "--status-port", str(STATUS_PORT)]
        session.spawn("istiodlite", [sys.executable, "-m", "istiodlite", *words], CONTROL_PORT, proxy=False)

    def _environment(self, folder: Path, account: str, control: str, case: Case) -> list[str]:
        values = {
            "PROXY_MODE": "dedicated",
            "PROXY_WORKLOAD_INFO": f"bench/{account}/{account}",
            "NODE_NAME": NODE,
            "XDS_ADDRESS": "",
            "LOCAL_XDS_PATH": str(folder / "state.yaml"),
            "CA_ADDRESS": f"https://{control}:{CONTROL_PORT}",
            "ALT_CA_HOSTNAME": "istiod.istio-system.svc",
            "CA_ROOT_CA": str(folder / "roots.pem"),
            "AUTH_TOKEN": str(folder / f"{account}.token"),
            "ENABLE_ORIG_SRC": "false",
            "ISTIO_META_DNS_CAPTURE": "false",
        }
        if case.cold:
            values["POOL_MAX_STREAMS_PER_CONNECTION"] = "1"
        return ["env", *(f"{name}={value}" for name, value in values.items())]


def _state(client: str, entry: str) -> str:
    """The mesh of `mesh_state`, in ztunnel's words; the server comes last."""
    member = f"{{bench/server.bench.svc.cluster.local: {{{ENTRY_PORT}: {SERVER_PORT}}}}}"
    pods = [("client", client, "client", "{}")]
    pods += [(f"other-{n}", f"10.88.{n // 250}.{n % 250 + 1}", "client", "{}") for n in range(_BYSTANDERS)]
    pods.append(("server", SERVER, "server", member))
    workloads = "".join(
        _WORKLOAD.format(
            name=name, address=address, account=account, services=services, domain=TRUST_DOMAIN, node=NODE
        )
        for name, address, account, services in pods
    )
    caller = CLIENT_ID.removeprefix("spiffe://")
    rest = _REST.format(entry=entry, entry_port=ENTRY_PORT, server_port=SERVER_PORT, caller=caller)
    return f"workloads:\n{workloads}{rest}"
