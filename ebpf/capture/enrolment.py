"""A pod is put in: claimed in the maps, given listeners, steered, and then marked."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from dataclasses import replace

from ebpf import looping, maps, netns, routes, rules
from ebpf.capture import withdrawal
from ebpf.capture.pod import EnrolledPod, PodNetwork
from ebpf.capture.state import NodeState, explained
from ebpf.dns import DnsSockets, adopt_dns, close_all, open_dns
from ebpf.errors import CaptureError, CaptureReason
from ebpf.listeners import PORTS, Listeners, adopt, open_listeners
from ebpf.maps import PodFlag, PodRecord
from ebpf.marks import AGENT_MARK
from ebpf.netlink import Netlink
from ebpf.variants import Variant

log = logging.getLogger(__name__)


def dial_mark(variant: Variant) -> int:
    """SO_MARK of the agent's own connections in a pod."""
    return AGENT_MARK if variant is Variant.C else 0


def enrol(node: NodeState, pod: PodNetwork) -> EnrolledPod:
    """See `Capture.enrol`."""
    pod.check()
    with contextlib.ExitStack() as undo:
        cookie = _cookie(node, pod.netns_fd)
        former = node.pods.get(cookie)
        netns_fd = former.network.netns_fd if former else os.dup(pod.netns_fd)
        if not former:
            undo.callback(os.close, netns_fd)
        listeners, left_dns = former.listeners if former else None, None
        if not listeners or not listeners.are_open():
            listeners, left_dns = _left_behind(node, cookie)
            listeners = listeners or open_listeners(netns_fd)
            undo.callback(listeners.close)
            listeners.mark(dial_mark(node.variant))
        dns = former.dns if former and pod.captures_dns else None
        if pod.captures_dns and not (dns and dns.are_open()):
            dns, left_dns = open_dns(netns_fd, left_dns), None
            undo.callback(dns.close)
        close_all(left_dns or ())
        with explained():
            record, is_new = _claim(node, cookie, netns_fd, pod)
            if is_new:
                undo.callback(withdrawal.forget, node, record, netns_fd)
            elif cookie in node.leaving:
                undo.callback(node.ledger.leave, record)
            _capture(node, record, netns_fd, pod, listeners, dns)
        undo.pop_all()
    if former and former.dns and former.dns is not dns:
        former.dns.close()
    return _entered(
        node,
        record,
        EnrolledPod(
            record.slot,
            cookie,
            listeners.outbound,
            listeners.inbound,
            listeners.hbone,
            replace(pod, netns_fd=netns_fd),
            dns,
        ),
    )


def _entered(node: NodeState, record: PodRecord, enrolled: EnrolledPod) -> EnrolledPod:
    """Everybody is told of a pod that is captured."""
    node.others.hand_over(record.cookie)
    left = node.leaving.pop(record.cookie, None)
    if left:
        os.close(left.network.netns_fd)
    if node.store:
        node.store.keep(record.cookie, enrolled.descriptors())
    node.pods[record.cookie] = enrolled
    node.direct.admit(enrolled.slot)
    return enrolled


def _cookie(node: NodeState, netns_fd: int) -> int:
    """Of a pod's namespace; never the agent's own, which is the node's."""
    try:
        cookie = netns.cookie(netns_fd)
    except OSError as error:
        raise CaptureError(
            CaptureReason.NETNS_UNUSABLE, f"network namespace: {error.strerror}", "is the pod alive?"
        ) from error
    if cookie == node.home:
        raise CaptureError(
            CaptureReason.UNSUPPORTED,
            "this is the agent's own network namespace",
            "leave hostNetwork pods out",
        )
    return cookie


def _left_behind(
    node: NodeState, cookie: int
) -> tuple[Listeners | None, tuple[socket.socket, socket.socket] | None]:
    """What a killed agent's clients wait for: the listeners, and the sockets for DNS."""
    if node.store is None:
        return None, None
    fds = node.store.take(cookie)
    return adopt(fds[: len(PORTS)], cookie), adopt_dns(fds[len(PORTS) :], cookie)


def _claim(node: NodeState, cookie: int, netns_fd: int, pod: PodNetwork) -> tuple[PodRecord, bool]:
    with netns.inside(netns_fd):
        sysctls = routes.current_sysctls()
        if node.variant is Variant.C:
            sysctls = looping.current_sysctls(sysctls)
    saved = node.others.saved(cookie).or_else(sysctls)
    return node.ledger.claim(cookie, netns.inode(netns_fd), _flags(node.variant, pod), saved)


def _capture(
    node: NodeState,
    record: PodRecord,
    netns_fd: int,
    pod: PodNetwork,
    listeners: Listeners,
    dns: DnsSockets | None,
) -> None:
    """Everything in its order: what steers before what marks or loops."""
    slot = record.slot
    with netns.inside(netns_fd), Netlink() as link:
        there = rules.listed(link)
        if dns is None:
            routes.spare_dns(link, there)
        node.ledger.set_listeners(slot, listeners)
        node.ledger.set_dns(slot, dns)
        own = maps.address_entries(slot, pod.addresses, pod.node_addresses)
        exempt = maps.exempt_entries(
            slot, pod.exempt_inbound_ports, pod.exempt_outbound_ports, pod.only_inbound_ports or ()
        )
        node.ledger.set_entries("addresses", slot, own)
        node.ledger.set_entries("exempt", slot, exempt)
        routes.set_sysctls()
        routes.apply(link, there, routes.plan(pod.addresses))
        if node.variant is Variant.B:
            looping.narrow(link, there, pod.addresses)  # a former agent's
        node.kernel.attach_pod(slot, netns_fd)
        node.ledger.mark_connections(node.ledger.settle(record, _flags(node.variant, pod)))
        if dns is not None:
            routes.capture_dns(link, there, routes.plan(pod.addresses))
        if node.variant is Variant.C:
            looping.set_sysctls()
            looping.keep(link, pod.addresses, _looping_plan(pod))


def _looping_plan(pod: PodNetwork) -> tuple[looping.Rule, ...]:
    return looping.plan(
        pod.addresses, pod.node_addresses, pod.exempt_inbound_ports, pod.exempt_outbound_ports
    )


def _flags(variant: Variant, pod: PodNetwork) -> PodFlag:
    """Variant C cannot tell the answers of an application from its own connections by the port alone that
    would have to be left out: it goes on capturing."""
    flags = PodFlag.BYPASS_INBOUND if pod.bypass_inbound else maps.NO_FLAGS
    if pod.only_inbound_ports is not None:
        flags |= PodFlag.LISTED_INBOUND
    if flags and variant is Variant.C:
        log.warning("variant C captures every inbound port: bypass and included ports have no effect")
        flags = maps.NO_FLAGS
    return flags | PodFlag.CAPTURE_DNS if pod.captures_dns else flags
