"""What replicas share is made once, made again when what it read changes, and forgotten with the last who used it."""

from __future__ import annotations

import pytest

from istiodlite.objects import KubeObject, ObjectKey
from istiodlite.registry import MeshConfig, Registry, dependencies, workloads
from tests.unit.istiodlite.histories import STATES, at
from tests.unit.istiodlite.mesh import NODE, WEB_HOST, WEB_POD, WEB_SERVICE, Mesh, objects

REPLICAS = [
    WEB_POD.replace("-abcde", f"-{number}").replace("10.1.0.5", f"10.1.0.{number}")
    for number in range(10, 20)
]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What `_replicas` is asked for from now on."""
    asked: list[tuple[object, ...]] = []
    make = workloads._replicas

    def _replicas(view: object, *arguments: object) -> object:
        asked.append(arguments)
        return make(view, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(workloads, "_replicas", _replicas)
    return asked


def test_what_ten_replicas_have_in_common_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counted(monkeypatch)
    mesh = Mesh(NODE, WEB_SERVICE, *REPLICAS)
    assert len(asked) == 1
    mesh.apply(REPLICAS[0].replace('status: "True"', 'status: "False"'))
    assert len(asked) == 1, "a replica that changes by itself asks for nothing new"
    changed = mesh.apply(WEB_SERVICE.replace("port: 80,", "port: 81,"))
    assert len(changed) == 11
    assert len(asked) == 2


def test_a_label_of_one_replica_leaves_the_others_as_they_are() -> None:
    mesh = Mesh(WEB_SERVICE, *REPLICAS)
    changed = mesh.apply(REPLICAS[0].replace("app: web", "app: other"))
    assert changed == {"Kubernetes//Pod/shop/web-7d9c5b7f6-10"}
    assert WEB_HOST not in mesh.workloads["Kubernetes//Pod/shop/web-7d9c5b7f6-10"].services
    assert WEB_HOST in mesh.workloads["Kubernetes//Pod/shop/web-7d9c5b7f6-11"].services


def test_nothing_is_kept_of_objects_that_are_gone() -> None:
    registry = Registry(MeshConfig())
    empty = _kept(registry)
    for which in range(3):
        present: dict[ObjectKey, KubeObject | None] = {}
        for place in range(len(STATES)):
            key, obj = at(place, which)
            present[key] = obj
        registry.apply(present)
        registry.apply(dict(objects(*REPLICAS)))
        registry.apply(dict.fromkeys(registry.objects))
        assert _kept(registry) == empty


def _kept(registry: Registry) -> tuple[object, ...]:
    users, parts = registry._users, registry._parts
    return set(users._users), set(users._tokens), set(parts._made)


def test_a_part_of_a_part_reaches_the_conversion() -> None:
    users = dependencies.Dependencies()
    parts = dependencies.Parts(users)
    key = ObjectKey("Pod", "shop", "web")

    def inner() -> tuple[str, set[dependencies.Token]]:
        return "inner", {("object",)}

    def outer() -> tuple[str, set[dependencies.Token]]:
        return parts.get(("inner",), inner), {("inner",)}

    assert parts.get(("outer",), outer) == "inner"
    users.note(key, (), (("outer",),))
    assert list(parts.affected([("object",)])) == [key]
    assert not parts._made
    parts.get(("outer",), outer)
    parts.drop(users.note(key, (("outer",),), ()))
    assert not parts._made
    assert not users._users
