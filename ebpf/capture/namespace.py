"""What a withdrawal does inside the pod's namespace, which may be gone: what fails is logged."""

from __future__ import annotations

import logging

from ebpf import looping, netns, routes, rules, sockets
from ebpf.capture.pod import PodNetwork
from ebpf.errors import CaptureError
from ebpf.maps import PodRecord
from ebpf.netlink import Netlink

log = logging.getLogger(__name__)


def restore(netns_fd: int, record: PodRecord) -> None:
    """The pod's network as it was before its enrolment."""
    try:
        with netns.inside(netns_fd), Netlink() as link:
            there = rules.listed(link)
            looping.revert(link, there)
            routes.revert(link, there)
            routes.restore_sysctls(record.saved)
            looping.restore_sysctls(record.saved)
    except OSError as error:
        log.warning("slot %d: network namespace not restored: %s", record.slot, error)


def narrow(network: PodNetwork) -> None:
    """Loop only what is relayed."""
    try:
        with netns.inside(network.netns_fd), Netlink() as link:
            looping.narrow(link, rules.listed(link), network.addresses)
    except (OSError, CaptureError) as error:
        log.warning("the pod's connections are still looped: %s", error)


def spare_dns(network: PodNetwork) -> None:
    """No more questions from a pod that leaves."""
    if not network.captures_dns:
        return
    try:
        with netns.inside(network.netns_fd), Netlink() as link:
            routes.spare_dns(link, rules.listed(link))
    except OSError as error:
        log.warning("rule for port 53 not removed: %s", error)


def relays(network: PodNetwork) -> bool:
    """Whether the agent relays connections of a pod. False if the namespace or the kernel cannot tell."""
    try:
        with netns.inside(network.netns_fd):
            return sockets.relayed(network.addresses)
    except OSError as error:
        log.warning("relayed connections cannot be listed: %s", error)
        return False
