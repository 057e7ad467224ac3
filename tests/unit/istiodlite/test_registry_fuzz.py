"""Whatever passes validation is converted without a crash, and to what an agent accepts."""

from __future__ import annotations

import copy
import json
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from istiodlite.manifests import load_text
from istiodlite.registry import ADDRESS_TYPE, MeshConfig, Registry
from tests.unit.istiodlite.histories import VARIANTS
from tests.unit.istiodlite.mesh import documents
from ztunnel.state.convert import address_from_bytes
from ztunnel.state.convert_policy import policy_from_bytes

DOCUMENTS: list[Any] = [yaml.safe_load(documents(text)) for variants in VARIANTS for text in variants]
WORDS = [
    "web",
    "a.example.com",
    "*",
    "*.x",
    "10.0.0.1",
    "10.0.0.0/8",
    "::1",
    "none",
    "STRICT",
    "DENY",
    "http",
    "80",
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 80, 65535, 65536, -1]),
    st.sampled_from(WORDS),
    st.text(max_size=4),
    st.just([]),
    st.just({}),
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something may be replaced."""
    if isinstance(value, dict):
        return [p for key, item in value.items() for p in [(*path, key), *paths(item, (*path, key))]]
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in [(*path, i), *paths(item, (*path, i))]]
    return []


@st.composite
def changed(draw: st.DrawFn) -> dict[str, Any]:
    """A real document with up to three places changed, doubled or removed."""
    document = copy.deepcopy(draw(st.sampled_from(DOCUMENTS)))
    for _ in range(draw(st.integers(0, 3))):
        places = [path for path in paths(document) if path[0] not in ("kind", "apiVersion")]
        if not places:
            break
        *before, last = draw(st.sampled_from(places))
        parent = document
        for step in before:
            parent = parent[step]
        match draw(st.sampled_from(["replace", "double", "remove"])):
            case "replace":
                parent[last] = draw(VALUES)
            case "double" if isinstance(parent, list):
                parent.append(parent[last])
            case _:
                del parent[last]
    return document  # type: ignore[no-any-return]


@settings(deadline=None, max_examples=300)
@given(st.lists(changed(), min_size=1, max_size=8))
def test_whatever_is_valid_is_converted_to_what_an_agent_accepts(documents: list[dict[str, Any]]) -> None:
    text = json.dumps({"kind": "List", "items": documents}, default=str)
    loaded, _ = load_text(text, "f.json")
    registry = Registry(MeshConfig())
    registry.apply({one.key: one.object for one in loaded})
    for resource in registry.resources.values():
        read = address_from_bytes if resource.type_url == ADDRESS_TYPE else policy_from_bytes
        read(resource.name, resource.body)
    list(registry.conditions())
    registry.apply({one.key: None for one in loaded})
    assert not registry.resources
