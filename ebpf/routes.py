"""The pod's side of the loop: policy rules, loop routes and sysctls.

`plan` says what a pod needs, as data; `apply` and `revert` run inside the pod's namespace, over a socket opened there,
and are told the rules that are there (`rules.listed`): the kernel has one lock for all namespaces' changes, so what
need not be changed is not. Reverting removes exactly what a plan names and writes back the sysctls that enrolment changed.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from ebpf import netlink, rules, sysctls
from ebpf.errors import CaptureError, CaptureReason
from ebpf.maps import UNTOUCHED, SavedSysctls
from ebpf.marks import ASIDE_MARK, DNS_RULE_PRIORITY, LOOP_MARK, LOOP_MASK, ROUTE_TABLE, RULE_PRIORITY
from ebpf.netlink import Netlink, Request
from ebpf.rules import Rules

Address = IPv4Address | IPv6Address

_LO: Final = 1
_RTPROT_STATIC: Final = 4
_RTN_LOCAL: Final = 2
_SCOPE_UNIVERSE, _SCOPE_HOST, _SCOPE_ANY = 0, 254, 255
_RTA_OIF, _RTA_PREFSRC, _RTA_TABLE = 4, 7, 15
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


def apply(link: Netlink, there: Rules, wanted: Plan) -> None:
    """Make the additions, and put right what a former agent left. CaptureError."""
    _make(link, [(route, _replacement(route)) for route in wanted.routes])
    bodies = {rule: _rule_body(rule) for rule in wanted.rules}
    missing = [(rule, rules.addition(raw)) for rule, raw in bodies.items() if rules.key(raw) not in there]
    _make(link, missing)
    stale = [_rule_body(Rule(rule.family, _other(rule.action))) for rule in wanted.rules]
    _remove(link, rules.removals(there, stale))


def capture_dns(link: Netlink, there: Rules, wanted: Plan) -> None:
    """Loop UDP to port 53, too, for the families that have a route. CaptureError."""
    bodies = {rule: _dns_rule_body(rule) for rule in (DnsRule(route.family) for route in wanted.routes)}
    _make(link, [(rule, rules.addition(raw)) for rule, raw in bodies.items() if rules.key(raw) not in there])


def spare_dns(link: Netlink, there: Rules) -> None:
    """Undo `capture_dns`. OSError."""
    link.remove(rules.removals(there, _dns_rules()))


def revert(link: Netlink, there: Rules) -> None:
    """Take all additions away, whatever plan they came from. OSError."""
    ours = [_rule_body(Rule(family, action)) for family in _FAMILIES for action in Action]
    removals = rules.removals(there, (*_dns_rules(), *ours))
    link.remove(
        [*removals, *(Request(netlink.DELETE_ROUTE, _any_loop_route_body(family)) for family in _FAMILIES)]
    )


def current_sysctls() -> SavedSysctls:
    """What `restore_sysctls` will have to write back: values other than 1 in this thread's namespace."""
    values: dict[str, int] = {}
    for name, path in SYSCTLS.items():
        with contextlib.suppress(FileNotFoundError):  # kernel without IPv6
            value = sysctls.read(path)
            values[name] = UNTOUCHED if value == 1 else value
    return SavedSysctls(**values)


def set_sysctls() -> None:
    """Switch all on in this thread's namespace. CaptureError where /proc/sys cannot be written."""
    for path in SYSCTLS.values():
        with contextlib.suppress(FileNotFoundError):
            sysctls.ensure(path, 1)


def restore_sysctls(saved: SavedSysctls) -> None:
    """Write back what enrolment changed. OSError."""
    for name, path in SYSCTLS.items():
        value: int = getattr(saved, name)
        if value != UNTOUCHED:
            sysctls.write(path, value)


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
    values: dict[int, bytes | int] = {
        rules.PRIORITY: rule.priority,
        rules.MARK: rule.mark,
        rules.MASK: rule.mask,
    }
    if rule.action is Action.LOOKUP:
        values[rules.TABLE] = rule.table
    return rules.body(rule.family, rule.action, values)


def _dns_rules() -> list[bytes]:
    return [_dns_rule_body(DnsRule(family)) for family in _FAMILIES]


def _dns_rule_body(rule: DnsRule) -> bytes:
    values: dict[int, bytes | int] = {
        rules.IIF: b"lo\0",
        rules.PRIORITY: DNS_RULE_PRIORITY,
        rules.MARK: 0,
        rules.MASK: ASIDE_MARK,
        rules.TABLE: ROUTE_TABLE,
        rules.IP_PROTOCOL: bytes([socket.IPPROTO_UDP]),
        rules.DPORT: struct.pack("=HH", _DNS_PORT, _DNS_PORT),
    }
    return rules.body(rule.family, Action.LOOKUP, values)


def _replacement(route: LoopRoute) -> Request:
    scope = _SCOPE_HOST if route.family == socket.AF_INET else _SCOPE_UNIVERSE
    header = struct.pack("=8BI", route.family, 0, 0, 0, 0, _RTPROT_STATIC, scope, _RTN_LOCAL, 0)
    values: dict[int, bytes | int] = {
        _RTA_TABLE: route.table,
        _RTA_OIF: _LO,
        _RTA_PREFSRC: route.source.packed,
    }
    return netlink.replacement(netlink.NEW_ROUTE, header + netlink.attributes(values))


def _any_loop_route_body(family: socket.AddressFamily) -> bytes:
    header = struct.pack("=8BI", family, 0, 0, 0, 0, 0, _SCOPE_ANY, 0, 0)
    return header + netlink.attributes({_RTA_TABLE: ROUTE_TABLE, _RTA_OIF: _LO})


def _make(link: Netlink, wanted: Sequence[tuple[Rule | DnsRule | LoopRoute, Request]]) -> None:
    outcome = link.batch([request for _, request in wanted])
    for (what, _), error in zip(wanted, outcome, strict=True):
        if error is None or isinstance(error, FileExistsError) or _is_needless(what, error):
            continue
        advice = _ADVICE.get(error.errno or 0, "look at `ip rule` and `ip route show table all` in the pod")
        raise CaptureError(CaptureReason.ROUTES_FAILED, f"{what}: {error.strerror}", advice) from error


def _remove(link: Netlink, removals: Sequence[Request]) -> None:
    try:
        link.remove(removals)
    except OSError as error:
        raise CaptureError(
            CaptureReason.ROUTES_FAILED,
            f"a former rule stays: {error.strerror}",
            "look at `ip rule` in the pod",
        ) from error


def _is_needless(what: Rule | DnsRule | LoopRoute, error: OSError) -> bool:
    """A kernel without IPv6 has nothing to capture."""
    closes = isinstance(what, Rule) and what.action is Action.UNREACHABLE and what.family == socket.AF_INET6
    return closes and error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
