"""The pod's side of the loop: policy rules, loop routes and sysctls.

`plan` says what a pod needs, as data; `apply` and `revert` run inside the pod's namespace. Reverting removes
exactly what the plan names and writes back the sysctls that enrolment changed.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from ebpf import netlink
from ebpf.errors import CaptureError, CaptureReason
from ebpf.maps import UNTOUCHED, SavedSysctls
from ebpf.marks import ASIDE_MARK, DNS_RULE_PRIORITY, LOOP_MARK, LOOP_MASK, ROUTE_TABLE, RULE_PRIORITY
from ebpf.netlink import Netlink

Address = IPv4Address | IPv6Address

_LO: Final = 1
_RTPROT_STATIC: Final = 4
_RTN_LOCAL: Final = 2
_SCOPE_UNIVERSE, _SCOPE_HOST, _SCOPE_ANY = 0, 254, 255
_RTA_OIF, _RTA_PREFSRC, _RTA_TABLE = 4, 7, 15
_FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 3, 6, 10, 15, 16
_FRA_IP_PROTO, _FRA_DPORT_RANGE = 22, 24
_DNS_PORT: Final = 53

SYSCTLS: Final = {
    "tcp_fwmark_accept": Path("/proc/sys/net/ipv4/tcp_fwmark_accept"),
    "fwmark_reflect_v4": Path("/proc/sys/net/ipv4/fwmark_reflect"),
    "fwmark_reflect_v6": Path("/proc/sys/net/ipv6/fwmark_reflect"),
}
"""Per namespace. Accepted sockets and resets carry the SYN's mark, so answers to the agent's onward
connections under the client's address find the way back to `lo`."""


class Action(enum.IntEnum):
    """FR_ACT_*: what a rule does with a marked packet."""

    LOOKUP = 1
    UNREACHABLE = 7


@dataclass(frozen=True, slots=True)
class Rule:
    """`ip rule pref P fwmark M/K lookup T` (or `unreachable`)."""

    family: socket.AddressFamily
    action: Action
    priority: int = RULE_PRIORITY
    mark: int = LOOP_MARK
    mask: int = LOOP_MASK
    table: int = ROUTE_TABLE

    def __str__(self) -> str:
        action = f"lookup {self.table}" if self.action is Action.LOOKUP else "unreachable"
        return (
            f"{_option(self.family)}rule pref {self.priority} fwmark {self.mark:#x}/{self.mask:#x} {action}"
        )


@dataclass(frozen=True, slots=True)
class DnsRule:
    """`ip rule pref P iif lo ipproto udp dport 53 fwmark 0/M lookup T`: what is sent from here, unless it is
    marked to be left alone."""

    family: socket.AddressFamily

    def __str__(self) -> str:
        return (
            f"{_option(self.family)}rule pref {DNS_RULE_PRIORITY} iif lo ipproto udp dport {_DNS_PORT} "
            f"fwmark 0/{ASIDE_MARK:#x} lookup {ROUTE_TABLE}"
        )


@dataclass(frozen=True, slots=True)
class LoopRoute:
    """`ip route local default dev lo src S table T`; without `src` the kernel would take the destination."""

    family: socket.AddressFamily
    source: Address
    table: int = ROUTE_TABLE

    def __str__(self) -> str:
        return f"{_option(self.family)}route local default dev lo src {self.source} table {self.table}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All of one pod's additions, in the order in which they are made."""

    routes: tuple[LoopRoute, ...]
    rules: tuple[Rule, ...]


def plan(addresses: Iterable[Address]) -> Plan:
    """Routes before rules: a rule must never lead to an empty table, which would let packets out.

    A family without an address gets an `unreachable` rule: should an address appear later, nothing of it
    leaves uncaptured. Until then it changes nothing, since there is nowhere to go anyway.
    """
    first: dict[socket.AddressFamily, Address] = {}
    for address in addresses:
        first.setdefault(_family(address), address)
    return Plan(
        tuple(LoopRoute(family, first[family]) for family in _FAMILIES if family in first),
        tuple(Rule(family, Action.LOOKUP if family in first else Action.UNREACHABLE) for family in _FAMILIES),
    )


def apply(wanted: Plan) -> None:
    """Make the additions in this thread's namespace; what is there already is put right. CaptureError."""
    with Netlink() as link:
        for route in wanted.routes:
            with _explained(route):
                link.replace(netlink.NEW_ROUTE, _route_body(route))
        for rule in wanted.rules:
            with _explained(rule), _ipv6_may_lack(rule.family, needed=rule.action is Action.LOOKUP):
                with contextlib.suppress(FileExistsError):
                    link.create(netlink.NEW_RULE, _rule_body(rule))
                _delete_rule(link, Rule(rule.family, _other(rule.action)))


def capture_dns(wanted: Plan) -> None:
    """Loop UDP to port 53, too, for the families that have a route. CaptureError."""
    with Netlink() as link:
        for route in wanted.routes:
            rule = DnsRule(route.family)
            with _explained(rule), contextlib.suppress(FileExistsError):
                link.create(netlink.NEW_RULE, _dns_rule_body(rule))


def spare_dns() -> None:
    """Undo `capture_dns`. OSError."""
    with Netlink() as link:
        _spare_dns(link)


def revert() -> None:
    """Take all additions away, whatever plan they came from; what is gone already is fine. OSError."""
    with Netlink() as link:
        _spare_dns(link)
        for family in _FAMILIES:
            for action in Action:
                _delete_rule(link, Rule(family, action))
            with _gone_is_fine():
                link.change(netlink.DELETE_ROUTE, _any_loop_route_body(family))


def current_sysctls() -> SavedSysctls:
    """What `restore_sysctls` will have to write back: values other than 1 in this thread's namespace."""
    values: dict[str, int] = {}
    for name, path in SYSCTLS.items():
        with contextlib.suppress(FileNotFoundError):  # kernel without IPv6
            value = int(path.read_text())
            values[name] = UNTOUCHED if value == 1 else value
    return SavedSysctls(**values)


def set_sysctls() -> None:
    """Switch all on in this thread's namespace. CaptureError where /proc/sys cannot be written."""
    for path in SYSCTLS.values():
        try:
            if path.read_text().strip() != "1":
                path.write_text("1")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CaptureError(
                CaptureReason.SYSCTL_FAILED,
                f"{path}: {error.strerror}",
                "run the agent with a writable /proc/sys (privileged)",
            ) from error


def restore_sysctls(saved: SavedSysctls) -> None:
    """Write back what enrolment changed. OSError."""
    for name, path in SYSCTLS.items():
        value: int = getattr(saved, name)
        if value != UNTOUCHED:
            path.write_text(str(value))


_ADVICE: Final = {
    errno.ENETDOWN: "set lo up in the pod",
    errno.EPERM: "grant NET_ADMIN",
    errno.EINVAL: "wait until duplicate address detection of the pod's address is over",
}
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6


def _option(family: socket.AddressFamily) -> str:
    return "ip -6 " if family == socket.AF_INET6 else "ip "


def _other(action: Action) -> Action:
    return Action.UNREACHABLE if action is Action.LOOKUP else Action.LOOKUP


def _rule_body(rule: Rule) -> bytes:
    looked_up = rule.table if rule.action is Action.LOOKUP else 0
    values: dict[int, bytes | int] = {
        _FRA_PRIORITY: rule.priority,
        _FRA_FWMARK: rule.mark,
        _FRA_FWMASK: rule.mask,
    }
    if looked_up:
        values[_FRA_TABLE] = looked_up
    header = struct.pack("=8BI", rule.family, 0, 0, 0, 0, 0, 0, rule.action, 0)
    return header + netlink.attributes(values)


def _spare_dns(link: Netlink) -> None:
    for family in _FAMILIES:
        with _gone_is_fine():
            link.change(netlink.DELETE_RULE, _dns_rule_body(DnsRule(family)))


def _dns_rule_body(rule: DnsRule) -> bytes:
    values: dict[int, bytes | int] = {
        _FRA_IIFNAME: b"lo\0",
        _FRA_PRIORITY: DNS_RULE_PRIORITY,
        _FRA_FWMARK: 0,
        _FRA_FWMASK: ASIDE_MARK,
        _FRA_TABLE: ROUTE_TABLE,
        _FRA_IP_PROTO: bytes([socket.IPPROTO_UDP]),
        _FRA_DPORT_RANGE: struct.pack("=HH", _DNS_PORT, _DNS_PORT),
    }
    header = struct.pack("=8BI", rule.family, 0, 0, 0, 0, 0, 0, Action.LOOKUP, 0)
    return header + netlink.attributes(values)


def _route_body(route: LoopRoute) -> bytes:
    scope = _SCOPE_HOST if route.family == socket.AF_INET else _SCOPE_UNIVERSE
    header = struct.pack("=8BI", route.family, 0, 0, 0, 0, _RTPROT_STATIC, scope, _RTN_LOCAL, 0)
    values: dict[int, bytes | int] = {
        _RTA_TABLE: route.table,
        _RTA_OIF: _LO,
        _RTA_PREFSRC: route.source.packed,
    }
    return header + netlink.attributes(values)


def _any_loop_route_body(family: socket.AddressFamily) -> bytes:
    header = struct.pack("=8BI", family, 0, 0, 0, 0, 0, _SCOPE_ANY, 0, 0)
    return header + netlink.attributes({_RTA_TABLE: ROUTE_TABLE, _RTA_OIF: _LO})


def _delete_rule(link: Netlink, rule: Rule) -> None:
    with _gone_is_fine():
        link.change(netlink.DELETE_RULE, _rule_body(rule))


@contextlib.contextmanager
def _explained(what: Rule | DnsRule | LoopRoute) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "look at `ip rule` and `ip route show table all` in the pod")
        raise CaptureError(CaptureReason.ROUTES_FAILED, f"{what}: {error.strerror}", advice) from error


@contextlib.contextmanager
def _ipv6_may_lack(family: socket.AddressFamily, *, needed: bool) -> Iterator[None]:
    """A kernel without IPv6 has nothing to capture."""
    try:
        yield
    except OSError as error:
        if needed or family != socket.AF_INET6 or error.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise
