"""From the server's JSON to objects: what is kept, what is refused, and that nothing makes it fall over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istiodlite.kube.collection import Collection
from istiodlite.kube.reading import Garbled, Reading, version_of
from istiodlite.objects import Pod
from istiodlite.sources.kube.kinds import WATCHED
from istiodlite.sources.kube.reading import read
from tests.unit.istiodlite.kube.objects import key, pod, policy

KINDS = {kind.kind: kind for kind in WATCHED}


def test_a_pod_is_read_with_nothing_but_what_is_needed() -> None:
    annotations = {
        "ambient.istio.io/redirection": "enabled",
        "kubectl.kubernetes.io/last-applied-configuration": "{}" * 1000,
        "notistio.io/x": "y",
    }
    reading = read(KINDS["Pod"], pod("web", annotations=annotations))
    assert isinstance(reading.object, Pod)
    assert dict(reading.object.meta.annotations) == {"ambient.istio.io/redirection": "enabled"}
    assert reading.object.addresses == ("10.1.0.5",)


def test_objects_that_differ_only_in_what_is_dropped_are_equal() -> None:
    one = read(KINDS["Pod"], pod("web", managedFields=[1], resourceVersion="1"))
    other = read(KINDS["Pod"], pod("web", managedFields=[2], resourceVersion="2"))
    assert one == other


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"metadata": []},
        {"metadata": {}},
        {"metadata": {"name": ""}},
        {"metadata": {"name": "x"}},
    ],
)
def test_what_is_no_object_is_garbage(body: Any) -> None:
    with pytest.raises(Garbled):
        read(KINDS["Pod"], body)


@pytest.mark.parametrize("body", [None, {}, {"metadata": {}}, {"metadata": {"resourceVersion": 7}}])
def test_an_answer_without_version_is_garbage(body: Any) -> None:
    with pytest.raises(Garbled):
        version_of(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "namespace", "spec", "status", "rules", "labels", "annotations", "ports", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from(WATCHED), json_values, json_values, json_values)
def test_any_json_is_an_object_an_error_or_garbage(kind: Any, meta: Any, spec: Any, status: Any) -> None:
    named = {"name": "x", "namespace": "shop", **(meta if isinstance(meta, dict) else {})}
    try:
        reading = read(kind, {"metadata": named, "spec": spec, "status": status})
    except Garbled:
        return
    assert (reading.object is None) != (reading.error is None)


def test_an_unusable_object_leaves_the_last_good_one_until_it_is_removed() -> None:
    kind, collection = KINDS["AuthorizationPolicy"], Collection[Any]()
    good, bad = read(kind, policy("p")), read(kind, policy("p", action="MAYBE"))
    assert collection.change(bad) == {}
    assert list(collection.errors) == [key("AuthorizationPolicy", "p")]
    assert collection.change(good) == {good.key: good.object}
    assert collection.errors == {}
    assert collection.change(bad) == {}
    assert collection.replace([bad]) == {}
    assert collection.objects == {good.key: good.object}
    assert collection.change(Reading(good.key, None)) == {good.key: None}
    assert collection.errors == {}
    assert collection.objects == {}


def test_an_error_at_the_first_sight_of_an_object_adds_nothing() -> None:
    collection = Collection[Any]()
    assert collection.replace([read(KINDS["Pod"], pod("web", "not-an-address"))]) == {}
    (error,) = collection.errors.values()
    assert str(error) == 'status.podIPs[0].ip: "not-an-address" is not an IP address'
