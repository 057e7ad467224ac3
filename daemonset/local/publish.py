"""Keeps names and ClusterIPs on the nodes as services and pods are at the moment."""

import logging
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path

import trio

from daemonset.local import dnsnames, nameserver
from daemonset.local.addresses import Ranges
from daemonset.local.desired import Desired
from daemonset.local.endpoints import PodEndpoint, PortBackends, backends
from daemonset.local.folder import write_atomically
from daemonset.local.linux import inside
from daemonset.local.node import Node
from daemonset.local.ruleset import ruleset
from daemonset.local.template import Key

log = logging.getLogger(__name__)


class Names:
    """Writes the hosts file and the nodes' rules when they differ from what was written last."""

    def __init__(self, ranges: Ranges, hosts: Path) -> None:
        self._ranges, self._hosts = ranges, hosts
        self._text = ""
        self._generation = 0

    async def publish(
        self,
        nodes: Iterable[Node],
        desired: Desired,
        addresses: Mapping[Key, Sequence[str]],
        pods: Sequence[PodEndpoint],
    ) -> str:
        """Returns when every node has the rules and its name server the names; a line if a node refused."""
        nodes = list(nodes)
        services = desired.services.values()
        ports = backends(services, addresses, pods, desired.slices)
        text = dnsnames.hosts_file(services, addresses, pods, self._ranges.fabric)
        problems: list[str] = []
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(self._load_rules, node, ports, desired, problems)
            if text != self._text:
                self._text = text
                self._generation += 1
                marked = text.replace(dnsnames.marker(0), dnsnames.marker(self._generation))
                write_atomically(self._hosts, marked)
                for node in nodes:
                    nursery.start_soon(self._reload, node)
        return "; ".join(problems)

    async def _load_rules(
        self, node: Node, ports: Sequence[PortBackends], desired: Desired, problems: list[str]
    ) -> None:
        extra = [ip_network(a) for s in desired.services.values() for a in s.requested]
        refuse = tuple(
            [network, *(n for n in extra if n.version == network.version)]
            for network in self._ranges.services
        )
        rules = ruleset(ports, node.name, (refuse[0], refuse[1]))
        if rules == node.rules:
            return
        error = await trio.to_thread.run_sync(load_ruleset, node.netns, rules)
        if error:
            problems.append(f"node {node.name}: nft refused the ClusterIP rules: {error}")
        else:
            node.rules = rules

    async def _reload(self, node: Node) -> None:
        if node.names is None:
            return
        node.names.signal(signal.SIGHUP)
        if not await nameserver.knows(node.netns, self._ranges.dns[0], dnsnames.marker(self._generation)):
            log.warning("the name server on %s is slow", node.name)


def load_ruleset(netns: Path, text: str) -> str:
    """Replaces the namespace's rules; the first line of what nft has to say, empty if it took them."""
    with inside(netns):
        done = subprocess.run(["nft", "-f", "-"], input=text, text=True, capture_output=True, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["nft failed"])[0]
