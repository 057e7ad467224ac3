"""The result depends on the objects, never on how they came; and only what is affected is made again."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from istiodlite.objects import KubeObject, ObjectKey
from istiodlite.registry import MeshConfig, Registry
from tests.unit.istiodlite.histories import STATES, at
from tests.unit.istiodlite.mesh import NODE, WEB_HOST, WEB_POD, WEB_SERVICE, WEB_UID, Mesh, objects

steps = st.lists(
    st.tuples(st.integers(0, len(STATES) - 1), st.integers(0, 3), st.booleans()), min_size=1, max_size=40
)


@settings(deadline=None, max_examples=200)
@given(steps)
def test_any_history_in_any_batches_gives_what_a_fresh_registry_gives(
    history: list[tuple[int, int, bool]],
) -> None:
    registry = Registry(MeshConfig())
    final: dict[ObjectKey, KubeObject] = {}
    told = dict(registry.resources)
    batch: dict[ObjectKey, KubeObject | None] = {}
    for place, which, flush in [*history, (0, 0, True)]:
        key, obj = at(place, which)
        batch[key] = obj
        final.pop(key, None)
        if obj is not None:
            final[key] = obj
        if flush:
            changes = registry.apply(batch)
            batch = {}
            for name in changes.removed:
                del told[name]
            told.update(((one.type_url, one.name), one) for one in changes.changed)
            assert told == registry.resources, "the changes told are the changes made"
    fresh = Registry(MeshConfig())
    fresh.apply(final)
    assert registry.resources == fresh.resources
    assert list(registry.conditions()) == list(fresh.conditions())


def test_every_order_of_three_related_objects_gives_the_same() -> None:
    results = [
        Mesh(*order).registry.resources for order in itertools.permutations([WEB_POD, WEB_SERVICE, NODE])
    ]
    assert all(result == results[0] for result in results)


def test_an_equal_object_changes_nothing() -> None:
    mesh = Mesh(WEB_POD, WEB_SERVICE)
    assert mesh.apply(WEB_POD, WEB_SERVICE) == set()


def test_a_pod_change_touches_that_pod_only() -> None:
    second = WEB_POD.replace("web-7d9c5b7f6-abcde", "second").replace("10.1.0.5", "10.1.0.6")
    mesh = Mesh(WEB_POD, second, WEB_SERVICE)
    built = mesh.registry._build
    seen: list[ObjectKey] = []
    mesh.registry._build = lambda key: (seen.append(key), built(key))[1]  # type: ignore[method-assign]
    assert mesh.apply(WEB_POD.replace('status: "True"', 'status: "False"')) == {WEB_UID}
    assert [key.name for key in seen] == ["web-7d9c5b7f6-abcde"]


def test_a_node_change_touches_its_pods_only() -> None:
    mesh = Mesh(WEB_POD, WEB_POD.replace("abcde", "other").replace("n1", "n2"), WEB_SERVICE, NODE)
    assert mesh.apply(NODE.replace("z1", "z2")) == {WEB_UID}


def test_an_address_that_moves_to_a_new_pod_is_one_batch_with_the_removal() -> None:
    mesh = Mesh(WEB_POD)
    key = ObjectKey("Pod", "shop", "web-7d9c5b7f6-abcde")
    heir = objects(WEB_POD.replace("web-7d9c5b7f6-abcde", "heir"))
    changes = mesh.registry.apply({key: None, **heir})
    assert [name for _, name in changes.removed] == [WEB_UID]
    assert [one.name for one in changes.changed] == ["Kubernetes//Pod/shop/heir"]


def test_versions_are_hashes_of_content_and_outlive_the_process() -> None:
    first, second = Mesh(WEB_POD, WEB_SERVICE), Mesh(WEB_SERVICE, WEB_POD)
    assert first.registry.resources == second.registry.resources
    service = next(one for one in first.registry.resources.values() if one.name == WEB_HOST)
    second.apply(WEB_SERVICE.replace("port: 80,", "port: 81,"))
    changed = next(one for one in second.registry.resources.values() if one.name == WEB_HOST)
    assert service.version != changed.version


def test_a_service_looks_at_pods_with_its_label_only(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(MeshConfig())
    pods = [WEB_POD.replace("web", f"app{n}").replace("10.1.0.5", f"10.1.0.{n}") for n in range(1, 30)]
    registry.apply(dict(objects(*pods)))
    built: list[ObjectKey] = []
    build = registry._build
    monkeypatch.setattr(registry, "_build", lambda key: built.append(key) or build(key))
    changes = registry.apply(dict(objects(WEB_SERVICE.replace("web", "app7"))))
    assert len(changes.changed) == 2
    assert sorted(key.kind for key in built) == ["Pod", "Service"]
