"""Which pods are to be in the mesh, read from objects; and which of several networks is a pod's."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istiodlite.kube.reading import Garbled
from tests.unit.ztunnel.enrol_objects import KIND, UID, pod
from ztunnel.enrol.netchoice import Candidate, Undecided, choose
from ztunnel.enrol.nodepods import NAMESPACES, read_namespace, read_pod
from ztunnel.enrol.settings import EXCLUDE_INBOUND

A, B = (0, 1), (0, 2)
ONE, TWO = ip_address("10.0.0.1"), ip_address("10.0.0.2")


@pytest.mark.parametrize(
    ("own", "namespace", "wanted"),
    [
        ("", "", False),
        ("", "ambient", True),
        ("ambient", "", True),
        ("none", "ambient", False),
        ("ambient", "none", True),
        ("", "none", False),
    ],
)
def test_a_pods_label_beats_its_namespaces(own: str, namespace: str, wanted: bool) -> None:
    assert pod(mode=own).wanted(namespace) is wanted


def test_the_hosts_network_and_sidecars_are_left_alone_whatever_the_labels() -> None:
    assert not pod(mode="ambient", hostNetwork=True).wanted("ambient")
    assert not pod(mode="ambient", annotations={"sidecar.istio.io/status": "{}"}).wanted("ambient")
    assert pod(mode="ambient", hostNetwork=False).wanted("")


def test_what_is_read_of_a_pod() -> None:
    read = pod(
        ip="10.0.0.1",
        phase="Succeeded",
        deleting=True,
        annotations={
            EXCLUDE_INBOUND: "80, x",
            "ambient.istio.io/redirection": "enabled",
        },
        serviceAccountName="sa",
    )
    assert (read.uid, str(read), read.service_account) == (UID, "shop/web", "sa")
    assert (read.addresses, read.ended, read.deleting) == ((ONE,), True, True)
    assert read.redirection == "enabled"
    assert "'x' is not a port" in str(read.problems[0])
    assert pod().service_account == "default"


def test_the_watch_asks_for_pods_of_the_node_alone() -> None:
    assert KIND.selector == "spec.nodeName=n1"


@pytest.mark.parametrize("body", [{}, {"metadata": {"name": "web", "namespace": "shop"}}, []])
def test_what_is_no_pod_is_refused(body: object) -> None:
    with pytest.raises(Garbled):
        read_pod(KIND, body)


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["labels", "annotations", "podIPs", "podIP", "ip", "phase", "hostNetwork"]),
                inner,
            )
        ),
        max_leaves=8,
    )
)
def test_parts_of_another_form_count_as_not_given(part: object) -> None:
    meta = {"name": "web", "namespace": "shop", "uid": UID, "labels": part}
    read_pod(KIND, {"metadata": meta, "spec": part, "status": part})


def test_a_namespaces_label() -> None:
    labels = {"istio.io/dataplane-mode": "ambient"}
    assert read_namespace(NAMESPACES, {"metadata": {"name": "shop", "labels": labels}}).object == "ambient"
    assert read_namespace(NAMESPACES, {"metadata": {"name": "shop"}}).object == ""


def test_one_network_is_the_pods_whatever_address_is_still_told() -> None:
    assert choose([Candidate(A, (ONE,))], ()) == A
    assert choose([Candidate(A, (ONE,))], (TWO,)) == A


@pytest.mark.parametrize(
    ("candidates", "told", "reason"),
    [
        ([], (), "none of its processes"),
        ([Candidate(A, ())], (ONE,), "no address yet"),
        ([Candidate(A, (ONE,)), Candidate(B, (TWO,))], (), "not known yet"),
        ([Candidate(A, (ONE,)), Candidate(B, (ONE,))], (ONE,), "several have"),
        ([Candidate(A, ()), Candidate(B, ())], (ONE,), "none have"),
    ],
)
def test_it_waits_rather_than_guesses(candidates: list[Candidate], told: tuple[object], reason: str) -> None:
    found = choose(candidates, told)  # type: ignore[arg-type]
    assert isinstance(found, Undecided)
    assert reason in found.reason


def test_of_several_networks_the_one_with_the_pods_address() -> None:
    assert choose([Candidate(A, (ONE,)), Candidate(B, (TWO,))], (TWO,)) == B
