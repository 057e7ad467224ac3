"""Variant C's rules in a pod: all TCP that is sent from it goes to `lo`, but for exceptions.

`plan` says what a pod needs, as data; `apply`, `narrow` and `revert` run inside the pod's namespace, over a socket
opened there. They come
in addition to those of `routes`, which bring the loop routes. An exception skips the looping rules and goes on
with the pod's own routing. Source: ip-rule(8), include/uapi/linux/fib_rules.h.
"""

from __future__ import annotations

import enum
import errno
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Final

from ebpf import rules, sockets, sysctls
from ebpf.errors import CaptureError, CaptureReason
from ebpf.maps import UNTOUCHED, SavedSysctls
from ebpf.marks import AGENT_MARK, LOOP_MARK, ROUTE_TABLE
from ebpf.netlink import Netlink
from ebpf.pairs import Endpoint
from ebpf.rules import Key, Rules

Address = IPv4Address | IPv6Address

_OURS: Final = 157
"""Originator of our rules (FRA_PROTOCOL), by which they are found again."""

_TCP: Final = 6
_LO: Final = b"lo\0"
_LINK_LOCAL: Final = IPv6Network("fe80::/10")
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_ALL: Final = Path("/proc/sys/net/ipv4/conf/all")
SYSCTLS: Final = {"accept_local": (_ALL / "accept_local", 1), "rp_filter": (_ALL / "rp_filter", 2)}
"""Per namespace, with the values wanted. The kernel asks the rules also for the way back of what comes in; by ours
that is `lo`, which a strict filter takes for a forged source. Loose (2) beats a device's strict (1)."""


class Action(enum.IntEnum):
    """FR_ACT_*."""

    LOOKUP = 1
    GOTO = 2
    NOP = 3
    UNREACHABLE = 7


class Priority(enum.IntEnum):
    """Between the local table (0) and the pod's own routing (32766)."""

    MARKED = 80
    RELAYED = 83
    AGENT = 85
    EXCEPTION = 86
    EVERYTHING = 104
    BOUND = 105
    END = 110


@dataclass(frozen=True, slots=True)
class Rule:
    """One policy rule. Prefixes and ports narrow it to TCP, `local` to what is sent from the pod."""

    family: socket.AddressFamily
    priority: Priority
    action: Action
    mark: int = 0
    local: bool = False
    source: Address | None = None
    to: str = ""
    sport: int = 0
    dport: int = 0

    def __str__(self) -> str:
        words = [f"ip {'-6 ' if self.family == socket.AF_INET6 else ''}rule pref {self.priority}"]
        words += [f"fwmark {self.mark:#x}/{self.mark:#x}"] if self.mark else []
        words += ["iif lo"] if self.local else []
        words += ["ipproto tcp"] if self.is_tcp else []
        words += [f"from {self.source}"] if self.source else []
        words += [f"to {self.to}"] if self.to else []
        words += [f"sport {self.sport}"] if self.sport else []
        words += [f"dport {self.dport}"] if self.dport else []
        target = {Action.LOOKUP: f" {ROUTE_TABLE}", Action.GOTO: f" {Priority.END}"}
        return " ".join([*words, self.action.name.lower() + target.get(self.action, "")])

    @property
    def is_tcp(self) -> bool:
        """Whether it is about TCP alone."""
        return not self.mark and self.action is not Action.NOP


def plan(
    own: Iterable[Address],
    node: Iterable[Address],
    exempt_inbound: Iterable[int],
    exempt_outbound: Iterable[int],
) -> tuple[Rule, ...]:
    """All rules of one pod, in the order in which they are made.

    Answers to the node's probes and from exempt ports are told from the application's own connections by the
    address or port they go to or come from: there is nothing else to tell them by. A socket that is bound to a
    device cannot be looped. It gets no route, which IPv6 refuses and IPv4 takes for "on that link".
    """
    inbound, outbound, families = sorted(exempt_inbound), sorted(exempt_outbound), {_family(a) for a in own}
    nodes = sorted({str(ip_network(address)) for address in node})
    rules: list[Rule] = []
    for family in _FAMILIES:
        skip = Rule(family, Priority.EXCEPTION, Action.GOTO)
        rules += _frame(family)
        rules += (replace(skip, to=text) for text in nodes if _family(ip_network(text)) == family)
        rules += [replace(skip, to=str(_LINK_LOCAL))] if family == socket.AF_INET6 else []
        rules += (replace(skip, sport=port) for port in inbound)
        rules += (replace(skip, dport=port) for port in outbound)
        if family in families:
            rules.append(Rule(family, Priority.EVERYTHING, Action.LOOKUP, local=True))
        rules.append(Rule(family, Priority.BOUND, Action.UNREACHABLE, local=True))
    return tuple(rules)


def remainder(relayed: Iterable[tuple[Endpoint, Endpoint]]) -> tuple[Rule, ...]:
    """What is left of the plan for a pod that leaves: the way of its relayed connections, (own end, other end)."""
    return (*(rule for family in _FAMILIES for rule in _frame(family)), *_kept(relayed))


def _kept(relayed: Iterable[tuple[Endpoint, Endpoint]]) -> tuple[Rule, ...]:
    """The way of connections that are looped whatever else is excepted."""
    rules: list[Rule] = []
    for own, other in sorted(relayed, key=str):
        rules.append(
            Rule(
                _family(own.ip),
                Priority.RELAYED,
                Action.LOOKUP,
                source=own.ip,
                to=str(ip_network(other.ip)),
                sport=own.port,
                dport=other.port,
            )
        )
    return tuple(rules)


def _frame(family: socket.AddressFamily) -> tuple[Rule, ...]:
    return (
        Rule(family, Priority.END, Action.NOP),
        Rule(family, Priority.MARKED, Action.LOOKUP, mark=LOOP_MARK),
        Rule(family, Priority.AGENT, Action.GOTO, mark=AGENT_MARK),
    )


def ours(there: Rules) -> dict[Key, bytes]:
    """Those of the rules that are there which a plan of this module made."""
    return {key: raw for key, raw in there.items() if rules.attribute(raw, rules.PROTOCOL) == bytes([_OURS])}


def apply(link: Netlink, wanted: Iterable[Rule]) -> None:
    """Make the rules of this thread's namespace just these: what is missing first, then what is too much.
    CaptureError."""
    there = ours(rules.listed(link))
    bodies = {rules.key(raw): (rule, raw) for rule, raw in ((rule, _body(rule)) for rule in wanted)}
    missing = [(rule, raw) for key, (rule, raw) in bodies.items() if key not in there]
    for (rule, _), error in zip(
        missing, link.batch([rules.addition(raw) for _, raw in missing]), strict=True
    ):
        _check(rule, error)
    _delete(link, {key: raw for key, raw in there.items() if key not in bodies})


def keep(link: Netlink, own: Iterable[Address], wanted: Iterable[Rule]) -> None:
    """`apply`, but connections that are relayed now stay so: their port may have become an exception.
    CaptureError, OSError."""
    apply(link, (*wanted, *_kept(sockets.relayed_pairs(tuple(own)))))


def narrow(link: Netlink, there: Rules, own: Iterable[Address]) -> None:
    """Loop nothing but the connections that are relayed now, if anything is looped. CaptureError, OSError."""
    if not ours(there):
        return
    addresses = tuple(own)
    everything = [rule for rule in plan(addresses, (), (), ()) if rule.priority >= Priority.EVERYTHING]
    apply(link, (*remainder(sockets.relayed_pairs(addresses)), *everything))
    # Once more, for what came meanwhile.
    relayed = tuple(sockets.relayed_pairs(addresses))
    apply(link, remainder(relayed) if relayed else ())


def revert(link: Netlink, there: Rules) -> None:
    """Take all rules away. OSError."""
    _delete(link, ours(there))


def current_sysctls(saved: SavedSysctls) -> SavedSysctls:
    """`saved` with what `restore_sysctls` will have to write back."""
    values: dict[str, int] = {}
    for name, (path, wanted) in SYSCTLS.items():
        value = sysctls.read(path)
        values[name] = UNTOUCHED if value == wanted else value
    return replace(saved, **values)


def set_sysctls() -> None:
    """In this thread's namespace. CaptureError where /proc/sys cannot be written."""
    for path, wanted in SYSCTLS.values():
        sysctls.ensure(path, wanted)


def restore_sysctls(saved: SavedSysctls) -> None:
    """Write back what enrolment changed. OSError."""
    for name, (path, _) in SYSCTLS.items():
        value: int = getattr(saved, name)
        if value != UNTOUCHED:
            sysctls.write(path, value)


def _family(address: object) -> socket.AddressFamily:
    return socket.AF_INET if getattr(address, "version", 4) == 4 else socket.AF_INET6


def _body(rule: Rule) -> bytes:
    to = ip_network(rule.to) if rule.to else None
    lengths = (to.prefixlen if to else 0, rule.source.max_prefixlen if rule.source else 0)
    values: dict[int, bytes | int] = {rules.PRIORITY: int(rule.priority), rules.PROTOCOL: bytes([_OURS])}
    values |= {rules.MARK: rule.mark, rules.MASK: rule.mark} if rule.mark else {}
    values |= {rules.TABLE: ROUTE_TABLE} if rule.action is Action.LOOKUP else {}
    values |= {rules.GOTO: int(Priority.END)} if rule.action is Action.GOTO else {}
    values |= {rules.IIF: _LO} if rule.local else {}
    values |= {rules.IP_PROTOCOL: bytes([_TCP])} if rule.is_tcp else {}
    values |= {rules.DST: to.network_address.packed} if to else {}
    values |= {rules.SRC: rule.source.packed} if rule.source else {}
    for kind, port in ((rules.SPORT, rule.sport), (rules.DPORT, rule.dport)):
        values |= {kind: struct.pack("=HH", port, port)} if port else {}
    return rules.body(rule.family, rule.action, values, lengths)


def _delete(link: Netlink, there: Mapping[Key, bytes]) -> None:
    """What loops goes before what is excepted from it."""

    def priority(raw: bytes) -> int:
        return int.from_bytes(rules.attribute(raw, rules.PRIORITY), sys.byteorder)

    ordered = sorted(there.values(), key=lambda raw: (priority(raw) == Priority.END, -priority(raw)))
    link.remove([rules.removal(raw) for raw in ordered])


def _check(rule: Rule, error: OSError | None) -> None:
    if error is None or isinstance(error, FileExistsError):
        return
    if rule.family == socket.AF_INET6 and error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
        return  # a kernel without IPv6 has nothing to capture
    advice = "grant NET_ADMIN" if error.errno == errno.EPERM else "look at `ip rule` in the pod"
    raise CaptureError(CaptureReason.ROUTES_FAILED, f"{rule}: {error.strerror}", advice) from error
