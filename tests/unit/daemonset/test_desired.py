"""From manifests to what is to be made."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from daemonset.local.compile import compile_objects
from daemonset.local.desired import BadManifests, Desired, NodeSpec
from daemonset.local.template import safe_hash
from istiodlite.manifests import load_folder


def compiled(text: str, nodes: int | None = None, present: tuple[NodeSpec, ...] = ()) -> Desired:
    return compile_objects(yaml.safe_load_all(text), nodes, present)


def errors(text: str) -> str:
    with pytest.raises(BadManifests) as failure:
        compiled(text)
    assert all("\n" not in line for line in failure.value.errors)
    return "; ".join(failure.value.errors)


def pod(name: str = "p", spec: str = "", metadata: str = "") -> str:
    return f"""
kind: Pod
metadata: {{name: {name}, {metadata}}}
spec: {{containers: [{{name: c, command: [sleep, "1"]}}], {spec}}}
"""


def deployment(replicas: int = 2, template_label: str = "web", env: str = "x") -> str:
    return f"""
kind: Deployment
metadata: {{name: web, namespace: shop}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: {template_label}}}}}
    spec: {{containers: [{{name: c, command: [run], env: [{{name: E, value: {env}}}]}}]}}
"""


def test_annotations_about_capture_that_cannot_be_read_are_noted_once_for_a_deployment() -> None:
    text = deployment(3).replace(
        "metadata: {labels: {app: web}}",
        "metadata: {labels: {app: web}, annotations: {ambient.istio.io/dns-capture: 'maybe'}}",
    )
    notes = [note for note in compiled(text).notes if "dns-capture" in note]
    assert len(notes) == 1
    assert notes[0].startswith(
        "Deployment shop/web: annotation ambient.istio.io/dns-capture: must be true or false"
    )


def test_deployment_becomes_pods_named_as_on_kubernetes() -> None:
    desired = compiled(deployment(3))
    pods = list(desired.pods.values())
    assert len(pods) == 3
    for one in pods:
        name, pod_hash, suffix = one.name.split("-")
        assert (name, pod_hash, len(suffix)) == ("web", one.template_hash, 5)
        assert one.labels == {"app": "web", "pod-template-hash": pod_hash}
        assert one.deployment == "web"


def test_pod_names_are_the_same_each_time_and_new_when_the_template_changes() -> None:
    first, again, other = (set(compiled(deployment(2, env=e)).pods) for e in ("x", "x", "y"))
    assert first == again
    assert not first & other


def test_scaling_keeps_the_names_of_the_pods_that_stay() -> None:
    assert set(compiled(deployment(1)).pods) < set(compiled(deployment(3)).pods)


def test_nodes_are_those_declared_and_those_pods_name() -> None:
    text = "\n---\n".join(["{kind: Node, metadata: {name: a, labels: {disk: ssd}}}", pod(spec="nodeName: b")])
    desired = compiled(text)
    assert list(desired.nodes) == ["a", "b"]
    assert desired.nodes["a"].labels["disk"] == "ssd"
    assert desired.nodes["b"].labels["kubernetes.io/hostname"] == "b"


@pytest.mark.parametrize(
    ("asked", "present", "names"),
    [
        (None, "", "node1 node2"),
        (None, "a b c", "a b c"),
        (1, "a b c", "a"),
        (4, "", "node1 node2 node3 node4"),
        (3, "node2", "node2 node1 node3"),
    ],
)
def test_nodes_without_declarations(asked: int | None, present: str, names: str) -> None:
    there = tuple(NodeSpec(name) for name in present.split())
    assert list(compiled(pod(), asked, there).nodes) == names.split()


def test_declared_node_goes_when_its_object_goes() -> None:
    there = (NodeSpec("a", declared=True), NodeSpec("b"))
    assert list(compiled(pod(), None, there).nodes) == ["b"]


def test_namespaces_that_are_used_are_implied_with_a_note() -> None:
    desired = compiled(pod(metadata="namespace: shop"))
    assert any("shop" in note for note in desired.notes)
    implied = [o for o in desired.objects if o["kind"] == "Namespace" and o["metadata"]["name"] == "shop"]
    assert implied[0]["metadata"]["labels"] == {"kubernetes.io/metadata.name": "shop"}


def test_objects_without_namespace_are_in_default() -> None:
    desired = compiled(pod())
    assert list(desired.pods) == [("default", "p")]
    assert {o["metadata"].get("namespace") for o in desired.objects if o["kind"] == "Pod"} == {"default"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (pod() + "---" + pod(), "declared twice"),
        (pod(name="Upper"), "DNS name"),
        (pod(spec="serviceAccountName: ghost"), "ServiceAccount ghost"),
        (pod(spec="restartPolicy: Sometimes"), "restartPolicy"),
        (pod(metadata="labels: {a: 1}"), "quote"),
        (pod(spec='nodeName: "Bad_Node"'), "cannot be a node's name"),
        ("{kind: Pod, metadata: {name: p}, spec: {containers: []}}", "no containers"),
        ("{kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: nginx}]}}", "command"),
        ("{kind: Pod, metadata: {name: p}, spec: [1]}", "Pod default/p"),
        (deployment(template_label="other"), "does not match"),
        (deployment(replicas=-1), "replicas"),
        ("{kind: Service, metadata: {name: s}, spec: {ports: [{port: 99999}]}}", "1 to 65535"),
        ("{kind: Service, metadata: {name: s}, spec: {}}", "ports is missing"),
        ("{kind: Secret, metadata: {name: s}, data: {k: '***'}}", "base64"),
    ],
)
def test_what_cannot_be_run_is_refused_with_advice(text: str, expected: str) -> None:
    assert expected in errors(text)


def test_all_errors_are_told_at_once() -> None:
    text = pod(spec="serviceAccountName: ghost") + "---" + pod(name="q", spec="restartPolicy: No")
    assert len(errors(text).split("; ")) == 2


def test_two_services_cannot_ask_for_one_address() -> None:
    text = "\n---\n".join(
        f"{{kind: Service, metadata: {{name: {n}}}, spec: {{clusterIP: 10.96.0.77, ports: [{{port: 1}}]}}}}"
        for n in "ab"
    )
    assert "already that of default/a" in errors(text)


@pytest.mark.parametrize(
    "source",
    [
        "envFrom: [{configMapRef: {name: missing}}]",
        "env: [{name: A, valueFrom: {configMapKeyRef: {name: missing, key: k}}}]",
    ],
)
def test_missing_config_map_is_found_before_anything_starts(source: str) -> None:
    text = (
        f"{{kind: Pod, metadata: {{name: p}}, spec: {{containers: [{{name: c, command: [x], {source}}}]}}}}"
    )
    assert "ConfigMap default/missing" in errors(text)


def test_kinds_that_are_not_run_are_named() -> None:
    desired = compiled("{kind: StatefulSet, metadata: {name: db}}")
    assert any("StatefulSet default/db is not run" in note for note in desired.notes)


def test_safe_hash_has_kubernetes_alphabet() -> None:
    texts: list[Any] = [safe_hash(str(i), 10) for i in range(200)]
    assert len(set(texts)) == 200
    assert set("".join(texts)) <= set("bcdfghjklmnpqrstvwxz2456789")


EXAMPLES = Path(__file__).resolve().parents[3] / "daemonset" / "local" / "examples"


@pytest.mark.parametrize("example", sorted(EXAMPLES.iterdir()), ids=lambda p: p.name)
def test_examples_are_without_error(example: Path) -> None:
    loaded, found = load_folder(example)
    assert found == []
    desired = compile_objects([item.body for item in loaded])
    assert desired.pods
    assert not any("not declared" in note for note in desired.notes)
