"""Istio's MeshConfig: which namespaces belong to the mesh, and who sees service entries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from istiodlite.api import workload_pb2
from istiodlite.manifests.errors import FieldError
from istiodlite.manifests.fields import Field
from istiodlite.manifests.mesh import parse_mesh
from istiodlite.objects import LabelSelector, Meta, Namespace, ObjectKey, Requirement, ServiceAccount
from istiodlite.registry import MeshConfig
from istiodlite.registry.scope import Scope
from tests.unit.istiodlite.mesh import Mesh

BASE = MeshConfig()
TEAMS = """
kind: Namespace
metadata: {name: open, labels: {team: a}}
---
kind: Namespace
metadata: {name: shop, labels: {team: b}}
"""
ENTRY = """
kind: ServiceEntry
metadata: {name: ext, namespace: shop, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: PLACE}}
spec:
  hosts: [a.example.com]
  resolution: STATIC
  ports: [{number: 80, name: http}]
  endpoints: [{address: 203.0.113.5}]
"""
WAYPOINT = """
kind: Gateway
metadata: {name: wp, namespace: PLACE}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]
status: {addresses: [{type: IPAddress, value: 10.96.0.50}]}
"""


def config(text: str) -> MeshConfig:
    return parse_mesh(Field(yaml.safe_load(text)), BASE)[0]


def rules(default: str) -> str:
    return f"""
serviceEntryVisibility:
  defaultVisibility: {default}
  policies:
    - visibility: PUBLIC
      matchingRules: [{{namespaceSelector: {{matchLabels: {{team: a}}}}}}]
"""


def test_what_counts_is_taken_and_the_rest_is_named() -> None:
    body = {
        "trustDomain": "example.org",
        "rootNamespace": "mesh",
        "accessLogFile": "/dev/stdout",
        "enableTracing": True,
    }
    mesh, others = parse_mesh(Field(body), BASE)
    assert (mesh.trust_domain, mesh.root_namespace) == ("example.org", "mesh")
    assert others == ["accessLogFile", "enableTracing"]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("discoverySelectors: {}", "discoverySelectors"),
        ("discoverySelectors: [{matchLabel: {a: b}}]", "discoverySelectors[0].matchLabel"),
        ("discoverySelectors: [{matchExpressions: [{key: a, operator: In}]}]", "discoverySelectors[0].matchExpressions[0].values"),
        ("serviceEntryVisibility: {defaultVisibility: SOME}", "serviceEntryVisibility.defaultVisibility"),
        ("serviceEntryVisibility: {policies: [{matchingRules: [{other: 1}]}]}", "serviceEntryVisibility.policies[0].matchingRules[0].other"),
        ("[]", ""),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_its_field(text: str, field: str) -> None:
    with pytest.raises(FieldError) as error:
        config(text)
    assert error.value.field == field


def test_without_rules_every_entry_is_public_and_nothing_is_said() -> None:
    mesh = Mesh(TEAMS, ENTRY)
    (service,) = mesh.services.values()
    assert service.visibility == workload_pb2.PUBLIC
    assert mesh.reasons("istio.io/VisibilityApplied") == {}


def test_an_entry_for_its_namespace_only() -> None:
    mesh = Mesh(TEAMS, ENTRY, ENTRY.replace("shop", "open"), config=config(rules("NAMESPACE")))
    found = {one.namespace: (one.visibility, one.canonical) for one in mesh.services.values()}
    assert found == {"shop": (workload_pb2.NAMESPACE, False), "open": (workload_pb2.PUBLIC, True)}
    assert set(mesh.reasons("istio.io/VisibilityApplied").values()) == {"Public", "Namespace"}


def test_an_entry_for_nobody_leaves_no_trace() -> None:
    mesh = Mesh(TEAMS, ENTRY, config=config(rules("NONE")))
    assert mesh.services == {}
    assert mesh.workloads == {}
    assert mesh.reasons("istio.io/VisibilityApplied") == {}
    mesh.apply(TEAMS.replace("team: b", "team: a"))
    assert len(mesh.services) == len(mesh.workloads) == 1


@pytest.mark.parametrize(
    ("place", "reason"), [("shop", "WaypointAccepted"), ("open", "CrossNamespaceWaypointForbidden")]
)
def test_a_hidden_entry_is_not_shown_to_a_waypoint_elsewhere(place: str, reason: str) -> None:
    texts = (TEAMS, ENTRY.replace("PLACE", place), WAYPOINT.replace("PLACE", place))
    mesh = Mesh(*texts, config=config(rules("NAMESPACE")))
    assert set(mesh.reasons("istio.io/WaypointBound").values()) == {reason}
    (service,) = mesh.services.values()
    assert service.HasField("waypoint") == (place == "shop")
    assert set(Mesh(*texts).reasons("istio.io/WaypointBound").values()) == {"WaypointAccepted"}


@pytest.mark.parametrize(
    ("requirement", "labels", "holds"),
    [
        (Requirement("a", "In", ("x", "y")), {"a": "y"}, True),
        (Requirement("a", "In", ("x",)), {}, False),
        (Requirement("a", "NotIn", ("x",)), {"a": "x"}, False),
        (Requirement("a", "NotIn", ("x",)), {}, True),
        (Requirement("a", "Exists"), {"a": ""}, True),
        (Requirement("a", "DoesNotExist"), {"a": ""}, False),
    ],
)
def test_requirements(requirement: Requirement, labels: dict[str, str], holds: bool) -> None:
    assert LabelSelector({}, (requirement,)).matches(labels) is holds


IN = LabelSelector({"mesh": "in"})


def namespace(name: str, mesh: str) -> tuple[ObjectKey, Namespace]:
    return ObjectKey("Namespace", "", name), Namespace(Meta(name, labels={"mesh": mesh}))


def account(name: str, place: str) -> tuple[ObjectKey, ServiceAccount]:
    return ObjectKey("ServiceAccount", place, name), ServiceAccount(Meta(name, namespace=place))


def test_a_label_brings_a_namespace_in_and_takes_it_out() -> None:
    scope = Scope([IN], "istio-system")
    batch = dict([namespace("a", "out"), account("x", "a"), account("y", "istio-system")])
    assert scope.narrow(batch).keys() == {ObjectKey("Namespace", "", "a"), account("y", "istio-system")[0]}
    assert account("x", "a")[0] in scope.narrow(dict([namespace("a", "in")]))
    assert scope.narrow(dict([namespace("a", "out")]))[account("x", "a")[0]] is None
    gone = {ObjectKey("Namespace", "", "istio-system"): None}
    assert account("y", "istio-system")[0] not in scope.narrow(gone), "the root namespace stays in"


_STEPS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["in", "out", "gone", "x+", "x-", "y+"]), st.booleans()),
    max_size=20,
)


@given(_STEPS)
def test_any_history_ends_with_exactly_what_is_in(steps: list[tuple[str, str, bool]]) -> None:
    scope, world, told, batch = Scope([IN], "root"), {}, {}, {}  # type: ignore[var-annotated]
    for place, what, flush in [*steps, ("a", "y+", True)]:
        if what in ("in", "out"):
            batch.update([namespace(place, what)])
        elif what == "gone":
            batch[ObjectKey("Namespace", "", place)] = None
        else:
            key, obj = account(what[0], place)
            batch[key] = obj if what.endswith("+") else None
        if flush:
            world.update(batch)
            told.update(scope.narrow(batch))
            batch = {}
    inside = {
        key.name
        for key, obj in world.items()
        if isinstance(obj, Namespace) and obj.meta.labels["mesh"] == "in"
    }
    wanted = {
        key: obj
        for key, obj in world.items()
        if obj is not None and (not key.namespace or key.namespace in inside)
    }
    assert {key: obj for key, obj in told.items() if obj is not None} == wanted


def test_the_command_takes_the_file(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text("trustDomain: example.org\naccessLogFile: x\n")
    (tmp_path / "objects.yaml").write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: []}\nstatus: {podIP: 10.0.0.1}\n"
    )
    command = [sys.executable, "-m", "istiodlite", "convert", str(tmp_path / "objects.yaml"), "--mesh-config"]
    done = subprocess.run([*command, str(tmp_path / "mesh.yaml")], capture_output=True, text=True, timeout=60)
    assert "trust_domain: example.org" in done.stdout
    assert "not read here: accessLogFile" in done.stderr
    done = subprocess.run([*command, str(tmp_path / "none.yaml")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("istiodlite: --mesh-config: ")
