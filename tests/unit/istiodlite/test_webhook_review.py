"""What the admission webhook says of objects."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istiodlite.manifests import load_text
from istiodlite.objects import KubeObject, ObjectKey
from istiodlite.registry import MeshConfig
from istiodlite.webhook import BadReview, review

POLICY = {"group": "security.istio.io", "version": "v1", "kind": "AuthorizationPolicy"}
MESH = MeshConfig()


def policy(spec: dict[str, Any], **meta: Any) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "shop", **meta},
        "spec": spec,
    }


def asked(obj: Any, kind: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    request = {"uid": "u1", "kind": kind or POLICY, "operation": "CREATE", "namespace": "shop", "object": obj}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {**request, **more}}


def answered(body: Any, objects: dict[ObjectKey, KubeObject] | None = None) -> dict[str, Any]:
    answer = review(body, objects or {}, MESH)
    assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response: dict[str, Any] = answer["response"]
    assert response["uid"] == "u1"
    return response


def test_a_good_object_is_taken_without_a_word() -> None:
    assert answered(asked(policy({"action": "DENY", "rules": [{}]}))) == {"uid": "u1", "allowed": True}


def test_what_the_reader_would_refuse_is_refused_with_the_field() -> None:
    response = answered(asked(policy({"rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/99"]}}]}]})))
    assert response["allowed"] is False
    assert "spec.rules[0].from[0].source.ipBlocks[0]" in response["status"]["message"]


def test_what_will_not_do_what_it_says_is_a_warning() -> None:
    rule = {"to": [{"operation": {"methods": ["DELETE"]}}]}
    response = answered(asked(policy({"action": "DENY", "rules": [rule]})))
    assert response["allowed"] is True
    (warning,) = response["warnings"]
    assert warning.startswith("deny-only-http: ")
    assert len(warning) <= 256


def test_warnings_speak_of_the_mesh_as_it_is() -> None:
    pod = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web, containers: [{name: c, image: i}]}
"""
    loaded, errors = load_text(pod, "x.yaml")
    assert not errors
    objects = {ObjectKey("Pod", "shop", "web"): loaded[0].object}
    spec = {"selector": {"matchLabels": {"app": "wbe"}}, "action": "DENY", "rules": [{}]}
    assert answered(asked(policy(spec)), objects)["warnings"][0].startswith("selector-hits-nothing: ")
    spec["selector"] = {"matchLabels": {"app": "web"}}
    assert "warnings" not in answered(asked(policy(spec)), objects)


def test_an_object_that_gets_its_name_later_is_reviewed_too() -> None:
    body = policy({"action": "NONSENSE"})
    body["metadata"] = {"generateName": "p-"}
    assert answered(asked(body))["allowed"] is False
    body["spec"] = {}
    assert answered(asked(body))["allowed"] is True


@pytest.mark.parametrize("operation", ["DELETE", "CONNECT"])
def test_nothing_but_creation_and_change_is_looked_at(operation: str) -> None:
    assert answered(asked(None, operation=operation))["allowed"] is True


def test_other_kinds_pass() -> None:
    kind = {"group": "apps", "version": "v1", "kind": "Deployment"}
    assert answered(asked({"nonsense": True}, kind))["allowed"] is True


def test_an_object_without_a_name_is_refused() -> None:
    assert answered(asked({"spec": {}}))["allowed"] is False


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1beta1", "request": {}},
        {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"},
        {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {"uid": "u"}},
        asked(policy({}), uid=7),
    ],
)
def test_what_is_no_review_is_said_to_be_none(body: Any) -> None:
    with pytest.raises(BadReview):
        review(body, {}, MESH)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)


@given(_JSON, st.dictionaries(st.sampled_from(["selector", "action", "rules", "targetRefs", "x"]), _JSON))
def test_any_object_gets_an_answer(obj: Any, spec: dict[str, Any]) -> None:
    assert isinstance(answered(asked(obj))["allowed"], bool)
    assert isinstance(answered(asked(policy(spec)))["allowed"], bool)
