"""One set of objects, two control planes: every field that an agent gets has to be the same."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.interop.istiod.answers import Plain, ask, differences, renamed
from tests.interop.istiod.known import explained
from tests.interop.istiod.objects import MARK, Applied
from tests.interop.istiod.process import Istiod
from tests.interop.kube.conftest import Cluster, KubeServing
from tests.support.serving import DEADLINE

pytestmark = [pytest.mark.istiod]
RECORDED = Path(__file__).with_name("recorded.json")


@pytest.fixture(scope="module")
def token(cluster: Cluster) -> str:
    return cluster.token("istio-system", "ztunnel", audience="istio-ca")


@pytest.fixture(scope="module")
def both(istiod: Istiod, istiodlite: KubeServing, gold: Applied, token: str) -> tuple[Plain, Plain]:
    """What each answers once both have seen everything, so that only explained differences are left."""
    deadline = time.monotonic() + DEADLINE
    while True:
        theirs = renamed(ask(istiod.agent(token), gold.mark), gold.mark, MARK)
        ours = renamed(ask(istiodlite.agent(token), gold.mark), gold.mark, MARK)
        if not explained(differences(theirs, ours)).unknown or time.monotonic() > deadline:
            return theirs, ours


def test_every_field_of_every_resource_is_the_same(both: tuple[Plain, Plain]) -> None:
    theirs, ours = both
    assert len(theirs) > 80
    found = explained(differences(theirs, ours))
    # Its value is the revision, which the program itself does not always know.
    if revision := os.environ.get("ISTIOD_RECORD"):
        body = {"istiod": revision, "answers": theirs}
        RECORDED.write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")
    assert found.unknown == [], "\n".join(found.unknown)


def test_every_known_difference_is_still_one(both: tuple[Plain, Plain]) -> None:
    assert explained(differences(*both)).missing == []
