"""A pod's place on its node: network, files of its own, cgroup. The CNI's part."""

import shutil
from collections.abc import Sequence
from ipaddress import ip_address

from daemonset.local import cgroups, dnsnames, linux, network
from daemonset.local.addresses import Address
from daemonset.local.folder import write_atomically
from daemonset.local.names import NETNS_DIR, pod_cgroup, pod_netns
from daemonset.local.node import Node
from daemonset.local.pods import Sandbox
from daemonset.local.template import PodTemplate


def place_pod(template: PodTemplate, node: Node, addresses: Sequence[Address]) -> Sandbox:
    """Where the pod is going to live. Makes nothing."""
    mesh, key = node.layout.mesh, template.key
    return Sandbox(
        node=node.name,
        node_netns=node.netns,
        node_addresses=tuple(map(str, node.addresses)),
        netns=node.netns if template.host_network else NETNS_DIR / pod_netns(mesh, *key),
        cgroup=pod_cgroup(node.cgroup_mount, mesh, node.name, *key),
        folder=node.layout.pod(*key),
        log_folder=node.layout.pod_logs(*key),
        addresses=tuple(map(str, addresses)),
    )


def make_sandbox(template: PodTemplate, node: Node, sandbox: Sandbox, uid: str) -> None:
    """Files and network of the pod. Synchronous. Raises OSError."""
    sandbox.folder.mkdir(parents=True, exist_ok=True)
    sandbox.cgroup.mkdir(parents=True, exist_ok=True)
    name_server, _ = node.ranges.dns
    write_atomically(sandbox.folder / "resolv.conf", dnsnames.resolv_conf(template.namespace, [name_server]))
    aliases = template.spec.get("hostAliases") or ()
    write_atomically(sandbox.folder / "hosts", dnsnames.etc_hosts(template.name, sandbox.addresses, aliases))
    if not template.host_network:
        addresses = [ip_address(a) for a in sandbox.addresses]
        network.make_pod(sandbox.netns, node.netns, uid, addresses, node.addresses, node.ranges)


def unmake_sandbox(template: PodTemplate, node: Node, sandbox: Sandbox, uid: str) -> None:
    """Takes back what `make_sandbox` made, as far as it came. Synchronous. Raises OSError."""
    if not template.host_network:
        network.remove_pod_link(node.netns, uid)
        linux.remove_netns(sandbox.netns)
    shutil.rmtree(sandbox.folder, ignore_errors=True)
    shutil.rmtree(sandbox.log_folder, ignore_errors=True)
    cgroups.remove(sandbox.cgroup)
