"""Every row of the table holds, and the page is made of it."""

from __future__ import annotations

import pytest

from istiodlite.api import authorization_pb2
from istiodlite.registry import AUTHORIZATION_TYPE
from tests.unit.istiodlite.compatibility.page import PAGE, render
from tests.unit.istiodlite.compatibility.rows import ROWS, Outcome, Row
from tests.unit.istiodlite.compatibility.world import Refused, changed, name_of, resources

POLICY = (AUTHORIZATION_TYPE, "shop/policy")
BEFORE = resources(changed("Namespace", "metadata.name", "shop"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind}-{row.field}-{row.outcome}")
def test_row(row: Row) -> None:
    bodies = changed(row.kind, row.field, row.value)
    if row.outcome is Outcome.REFUSED:
        with pytest.raises(Refused) as refusal:
            resources(bodies)
        said = f"{row.kind} shop/{name_of(row.kind)}: {row.at or row.field}: "
        assert said in str(refusal.value)
        return
    after = resources(bodies)
    if row.outcome is Outcome.IGNORED:
        assert after == BEFORE
        return
    assert after != BEFORE
    if row.kind == "AuthorizationPolicy" and POLICY in after:
        # A rule that agents do not get would change what they are told, too.
        assert _rules(after[POLICY]) == _wanted_rules(row)


def _wanted_rules(row: Row) -> int:
    if row.outcome is Outcome.WAYPOINT:
        return 0
    if row.groups is not None:
        return row.groups
    return 2 if row.field == "spec.rules[1]" else 1


def _rules(body: bytes) -> int:
    return len(authorization_pb2.Authorization.FromString(body).groups)


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == render(), (
        "run: python -m tests.unit.istiodlite.compatibility.page > docs/compatibility.md"
    )
