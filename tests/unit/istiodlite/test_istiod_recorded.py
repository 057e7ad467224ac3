"""What a real istiod answered for tests/interop/istiod/objects.yaml, held against the registry, without either."""

from __future__ import annotations

import json

import pytest

from istiodlite.manifests import load_text
from istiodlite.registry import MeshConfig, Registry
from tests.interop.istiod.answers import Plain, differences, plain
from tests.interop.istiod.known import explained
from tests.interop.istiod.objects import MARK, as_files
from tests.interop.istiod.test_golden import RECORDED


@pytest.fixture(scope="module")
def found() -> list[str]:
    loaded, errors = load_text(as_files(), "objects.yaml")
    assert not errors, "\n".join(map(str, errors))
    registry = Registry(MeshConfig())
    registry.apply({one.key: one.object for one in loaded})
    ours: Plain = {
        one.name: plain(one.type_url, one.body)
        for one in registry.resources.values()
        if MARK in one.name or "istio_converted" in one.name
    }
    return differences(json.loads(RECORDED.read_text())["answers"], ours)


def test_every_field_is_as_istiod_filled_it(found: list[str]) -> None:
    assert explained(found).unknown == []


def test_every_known_difference_is_still_one(found: list[str]) -> None:
    assert explained(found).missing == []
