"""The plan: which rules and routes a pod gets."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from ebpf import marks, routes
from ebpf.routes import Action, LoopRoute, Rule

V4, V6 = socket.AF_INET, socket.AF_INET6


def test_each_family_loops_under_its_first_address() -> None:
    addresses = [ip_address(text) for text in ("fd00::1", "10.0.0.1", "10.0.0.2", "fd00::2")]
    plan = routes.plan(addresses)
    assert plan.routes == (LoopRoute(V4, ip_address("10.0.0.1")), LoopRoute(V6, ip_address("fd00::1")))
    assert plan.rules == (Rule(V4, Action.LOOKUP), Rule(V6, Action.LOOKUP))


def test_family_without_address_is_closed() -> None:
    plan = routes.plan([ip_address("10.0.0.1")])
    assert [route.family for route in plan.routes] == [V4]
    assert plan.rules == (Rule(V4, Action.LOOKUP), Rule(V6, Action.UNREACHABLE))
    plan = routes.plan([ip_address("fd00::1")])
    assert [route.family for route in plan.routes] == [V6]
    assert plan.rules == (Rule(V4, Action.UNREACHABLE), Rule(V6, Action.LOOKUP))


def test_rules_lead_to_the_table_of_the_routes_and_match_the_programs_mark() -> None:
    plan = routes.plan([ip_address("10.0.0.1"), ip_address("fd00::1")])
    assert {rule.table for rule in plan.rules} == {route.table for route in plan.routes}
    assert {(rule.mark, rule.mask) for rule in plan.rules} == {(marks.LOOP_MARK, marks.LOOP_MARK)}
    assert marks.ONWARD_MARK & marks.LOOP_MASK == marks.LOOP_MARK


def test_plan_reads_as_the_commands_it_stands_for() -> None:
    plan = routes.plan([ip_address("fd00::1")])
    assert [str(part) for part in (*plan.routes, *plan.rules)] == [
        "ip -6 route local default dev lo src fd00::1 table 15001",
        "ip rule pref 100 fwmark 0x1000/0x1000 unreachable",
        "ip -6 rule pref 100 fwmark 0x1000/0x1000 lookup 15001",
    ]


def test_rule_for_names_leads_to_the_same_table_and_spares_what_is_marked() -> None:
    assert str(routes.DnsRule(V6)) == (
        "ip -6 rule pref 101 iif lo ipproto udp dport 53 fwmark 0/0x2000 lookup 15001"
    )
    assert not marks.ASIDE_MARK & marks.LOOP_MASK
