"""What the setting switches, and how a direct connection is told from a relayed one."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from hbone.reasons import Reason
from tests.unit.state.builders import workload
from ztunnel.accesslog import AccessLog, AccessRecord
from ztunnel.config import ConfigError, load
from ztunnel.decide.model import Direction, TrafficEnds
from ztunnel.flows.facets import Facets
from ztunnel.logs import LineWriter
from ztunnel.metrics import Traffic


def shown(traffic: Traffic) -> str:
    registry = CollectorRegistry()
    registry.register(traffic)
    return generate_latest(registry).decode()


def test_encryption_is_the_default() -> None:
    assert load({"NODE_NAME": "n"}).same_node_encryption is True
    assert load({"NODE_NAME": "n", "SAME_NODE_ENCRYPTION": "always"}).same_node_encryption is True
    assert load({"NODE_NAME": "n", "SAME_NODE_ENCRYPTION": "never"}).same_node_encryption is False


def test_the_short_cut_is_off_by_default_and_only_for_direct_connections() -> None:
    never = {"NODE_NAME": "n", "SAME_NODE_ENCRYPTION": "never"}
    assert load(never).redirect_peer is False
    assert load({**never, "AMBIENT_REDIRECT_PEER": "true"}).redirect_peer is True
    with pytest.raises(ConfigError, match="set SAME_NODE_ENCRYPTION=never"):
        load({"NODE_NAME": "n", "AMBIENT_REDIRECT_PEER": "true"})


@pytest.mark.parametrize("value", ["", "true", "Never", "sometimes"])
def test_other_values_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="SAME_NODE_ENCRYPTION must be always or never"):
        load({"NODE_NAME": "n", "SAME_NODE_ENCRYPTION": value})


def test_istios_labels_are_left_alone_unless_paths_are_shown() -> None:
    ends = TrafficEnds(source=workload("a"), destination=workload("b"))
    plain, labelled = Traffic(), Traffic()
    labelled.shows_path = True
    for traffic in (plain, labelled):
        for path in ("", "direct"):
            traffic.series(ends, Direction.OUTBOUND, Reason.OK, path).opened += 1
    assert "connection_path" not in shown(plain)
    assert plain.series(ends, Direction.OUTBOUND, Reason.OK).opened == 2
    rows = [row for row in shown(labelled).splitlines() if "connections_opened_total{" in row]
    assert sorted(row.partition('connection_path="')[2].partition('"')[0] for row in rows) == [
        "direct",
        "proxy",
    ]


def test_relayed_and_direct_connections_of_the_same_ends_are_counted_apart() -> None:
    traffic = Traffic()
    traffic.shows_path = True
    facets = Facets(traffic)
    ends = TrafficEnds(source=workload("a"), destination=workload("b"))
    relayed, direct = (facets.of(ends, Direction.OUTBOUND, path) for path in ("", "direct"))
    assert relayed.opened is not direct.opened
    assert facets.of(ends, Direction.OUTBOUND, "direct") is direct


@pytest.mark.parametrize("as_json", [False, True])
def test_log_line_names_the_path_of_direct_connections_only(
    as_json: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ztunnel.access")
    read, write = os.pipe()
    writer = LineWriter(write)
    log = AccessLog(writer, as_json=as_json)
    record: Any = AccessRecord("outbound", "10.0.0.1:4000", "10.0.0.2:80")
    log.complete(record)
    log.complete(record._replace(path="direct"))
    log.flush()
    writer.close()
    os.close(write)
    with os.fdopen(read) as text:
        relayed, direct = text.read().splitlines()
    assert "connection_path" not in relayed
    assert ('"connection_path": "direct"' if as_json else 'connection_path="direct"') in direct
