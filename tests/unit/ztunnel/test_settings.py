"""What a pod's annotations ask of its capture."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.enrol import settings
from ztunnel.enrol.settings import CaptureSettings, read

LISTS = (settings.EXCLUDE_INBOUND, settings.EXCLUDE_OUTBOUND, settings.INCLUDE_INBOUND)


def test_without_annotations_everything_is_captured() -> None:
    assert read({}) == (CaptureSettings(), ())
    assert read({"example.com/else": "80"}) == (CaptureSettings(), ())


def test_acceleration_is_for_who_asks() -> None:
    assert read({settings.ACCELERATE: "true"}) == (CaptureSettings(accelerate=True), ())
    assert "must be true or false" in str(*read({settings.ACCELERATE: "fast"})[1])


def test_lists_are_read_as_istio_writes_them() -> None:
    found, problems = read({settings.EXCLUDE_INBOUND: "80, 9090", settings.EXCLUDE_OUTBOUND: "5432"})
    assert found == CaptureSettings(frozenset({80, 9090}), frozenset({5432}))
    assert not problems


@pytest.mark.parametrize(
    ("text", "ports"), [("*", None), ("", frozenset()), ("80", {80}), ("80,443", {80, 443})]
)
def test_included_ports_are_all_none_or_those_listed(text: str, ports: set[int] | None) -> None:
    found, problems = read({settings.INCLUDE_INBOUND: text})
    assert found.include_inbound == ports
    assert not problems


def test_excluded_ports_do_not_count_beside_included_ones() -> None:
    found, problems = read({settings.INCLUDE_INBOUND: "80", settings.EXCLUDE_INBOUND: "80"})
    assert found == CaptureSettings(include_inbound=frozenset({80}))
    assert "without effect" in str(*problems)


def test_port_of_the_mesh_cannot_be_excluded() -> None:
    found, problems = read({settings.EXCLUDE_INBOUND: "15008,80"})
    assert found.exclude_inbound == {80}
    assert "15008" in str(*problems)


def test_included_outbound_ports_change_nothing_and_it_is_said() -> None:
    assert "without effect" in str(*read({settings.INCLUDE_OUTBOUND: "80"})[1])
    assert read({settings.INCLUDE_OUTBOUND: "*"}) == (CaptureSettings(), ())


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("text", ["http", "80,x", "0", "65536", "80-90", "-1", "80;90", "\u0661", "9" * 5000])
def test_list_that_cannot_be_read_is_ignored_as_a_whole_and_said(name: str, text: str) -> None:
    found, problems = read({name: text})
    assert found == CaptureSettings()
    (problem,) = problems
    assert problem.annotation == name
    assert "ignored" in problem.text
    assert "\n" not in str(problem)
    assert len(str(problem)) < 250


def test_more_ports_than_fit_are_refused() -> None:
    text = ",".join(map(str, range(1, settings.MAX_PORTS + 2)))
    assert read({settings.EXCLUDE_INBOUND: text})[0] == CaptureSettings()
    assert (
        len(read({settings.EXCLUDE_INBOUND: text.rpartition(",")[0]})[0].exclude_inbound)
        == settings.MAX_PORTS
    )


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("False", False), ("0", False)])
def test_switches_are_booleans_as_go_reads_them(text: str, value: bool) -> None:
    found, problems = read({settings.BYPASS_INBOUND: text, settings.DNS_CAPTURE: text})
    assert (found.bypass_inbound, found.dns_capture, problems) == (value, value, ())


@pytest.mark.parametrize("text", ["yes", "", "on", " true"])
def test_switch_that_cannot_be_read_counts_as_not_given(text: str) -> None:
    found, problems = read({settings.BYPASS_INBOUND: text, settings.DNS_CAPTURE: text})
    assert found == CaptureSettings()
    assert len(problems) == 2


@given(st.dictionaries(st.sampled_from(LISTS), st.text(max_size=60)))
def test_whatever_is_written_is_ports_or_nothing(annotations: dict[str, str]) -> None:
    found, _ = read(annotations)
    for ports in (found.exclude_inbound, found.exclude_outbound, found.include_inbound or ()):
        assert all(0 < port < 65536 for port in ports)
