"""Access log lines, character by character."""

from __future__ import annotations

import json
import os

import pytest

from hbone.reasons import Reason
from ztunnel.accesslog import AccessLog, AccessRecord, End
from ztunnel.logs import LineWriter

NOON = 1_767_268_800.5

DONE = AccessRecord(
    direction="outbound",
    source_address="10.0.1.5:41200",
    source=End("client-7d", "shop", "spiffe://cluster.local/ns/shop/sa/client", "Kubernetes"),
    destination_address="10.0.2.9:15008",
    hbone_address="10.0.2.9:8080",
    destination=End(
        "cart-55",
        "shop",
        "spiffe://cluster.local/ns/shop/sa/cart",
        "Kubernetes",
        "cart.shop.svc.cluster.local",
    ),
    bytes_sent=84,
    bytes_received=175,
    duration=0.0036,
)

REFUSED = AccessRecord(
    direction="inbound",
    source_address="10.0.1.6:5000",
    destination_address="10.0.2.9:8080",
    destination=End("cart-55", "shop"),
    duration=0.0001,
    reason=Reason.POLICY_DENIED,
    policy="shop/deny-all",
)


@pytest.fixture(autouse=True)
def _level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ztunnel.access")


def written(record: AccessRecord, *, as_json: bool, opened: bool = False) -> str:
    read, write = os.pipe()
    writer = LineWriter(write)
    log = AccessLog(writer, as_json=as_json, wall_clock=lambda: NOON)
    (log.opened if opened else log.complete)(record)
    writer.close(5)
    os.close(write)
    with os.fdopen(read) as file:
        return file.read()


def test_a_completed_connection_in_plain_format() -> None:
    assert written(DONE, as_json=False) == (
        "2026-01-01T12:00:00.500000Z\tinfo\taccess\tconnection complete\t"
        'src.addr=10.0.1.5:41200 src.workload="client-7d" src.namespace="shop" '
        'src.identity="spiffe://cluster.local/ns/shop/sa/client" src.cluster="Kubernetes" '
        "dst.addr=10.0.2.9:15008 dst.hbone_addr=10.0.2.9:8080 "
        'dst.service="cart.shop.svc.cluster.local" dst.workload="cart-55" dst.namespace="shop" '
        'dst.identity="spiffe://cluster.local/ns/shop/sa/cart" dst.cluster="Kubernetes" '
        'direction="outbound" bytes_sent=84 bytes_recv=175 duration="3ms"\n'
    )


def test_a_refused_connection_names_error_reason_and_policy() -> None:
    assert written(REFUSED, as_json=False) == (
        "2026-01-01T12:00:00.500000Z\terror\taccess\tconnection complete\t"
        "src.addr=10.0.1.6:5000 dst.addr=10.0.2.9:8080 "
        'dst.workload="cart-55" dst.namespace="shop" direction="inbound" bytes_sent=0 bytes_recv=0 '
        'duration="0ms" error="a DENY policy matched" reason="policy_denied" policy="shop/deny-all"\n'
    )


def test_json_has_the_same_fields_in_the_same_order() -> None:
    plain = written(DONE, as_json=False).split("\t", 4)[4]
    shown = json.loads(written(DONE, as_json=True))
    names = [part.partition("=")[0] for part in plain.split(" ")]
    assert list(shown) == ["level", "time", "scope", "message", *names]
    assert shown["bytes_sent"] == 84
    assert shown["src.addr"] == "10.0.1.5:41200"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_connection_that_begins_is_a_matter_of_level_debug(
    caplog: pytest.LogCaptureFixture, as_json: bool
) -> None:
    assert written(DONE, as_json=as_json, opened=True) == ""
    caplog.set_level("DEBUG", "ztunnel.access")
    line = written(DONE, as_json=as_json, opened=True)
    same = written(DONE, as_json=as_json).replace("info", "debug").replace("complete", "opened")
    ends = '"outbound"'
    assert line == same[: same.index(ends)] + ends + ("}\n" if as_json else "\n")


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_makes_one_line(reason: Reason) -> None:
    record = AccessRecord("inbound", "1.1.1.1:1", "2.2.2.2:2", reason=reason, detail="with\nnewline")
    assert written(record, as_json=False).count("\n") == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_no_name_can_forge_a_field_or_a_line(as_json: bool) -> None:
    evil = 'x" reason="ok\n2026\tinfo'
    text = written(DONE._replace(source=End(evil), reason=Reason.INTERNAL, detail=evil), as_json=as_json)
    assert text.count("\n") == 1
    if as_json:
        assert json.loads(text)["src.workload"] == evil
    else:
        assert "src.workload=" + json.dumps(evil) in text
