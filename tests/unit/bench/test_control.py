"""What the control group reads, sends and says where something is absent."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from istiodlite.api import discovery_pb2
from istiodlite.objects import Pod
from istiodlite.registry import MeshConfig, Registry
from istiodlite.sources.kube.kinds import WATCHED
from istiodlite.sources.kube.reading import read
from tests.bench.control import cluster, group, objects, planes
from tests.bench.control.streams import head_of
from tests.bench.results import Sample, Samples, document, problems
from tests.bench.tables import text


def test_version_type_and_nonce_are_found_before_and_behind_the_resources() -> None:
    head = discovery_pb2.DeltaDiscoveryResponse(system_version_info="7", type_url="t", nonce="n")
    resources = discovery_pb2.DeltaDiscoveryResponse(
        resources=[discovery_pb2.Resource(name=f"r{number}", version="v") for number in range(300)]
    )
    parts = [head.SerializeToString(), resources.SerializeToString()]
    for body in (b"".join(parts), b"".join(reversed(parts))):
        assert head_of(memoryview(body)) == {1: "7", 4: "t", 5: "n"}
    assert head_of(memoryview(b"".join(parts))[:40]) == {1: "7", 4: "t", 5: "n"}


def test_what_is_put_into_a_cluster_is_the_mesh_of_the_other_rows() -> None:
    """Read back as the control plane reads it, a pod gives the workload that the object in memory gives."""
    own = objects.pod(7, 500)
    ((_, body),) = cluster._requests(own)
    body = {**body, "kind": "Pod", "apiVersion": "v1", "status": cluster.status_of(own)}
    body["metadata"] = {**body["metadata"], "namespace": own.meta.namespace}
    (kind,) = (one for one in WATCHED if one.kind == "Pod")
    back = read(kind, body).object
    assert isinstance(back, Pod)
    assert _resources(back) == _resources(own)


def _resources(pod: Pod) -> Mapping[tuple[str, str], object]:
    registry = Registry(MeshConfig())
    registry.apply({objects._key(pod): pod})
    return registry.resources


@pytest.mark.parametrize("istiod", [True, False])
def test_rows_without_a_figure_have_a_reason(istiod: bool) -> None:
    samples = {case: Samples() for case in group._CASES}
    without = {} if istiod else {"ours": "KUBECONFIG is not set", "istiod": "KUBECONFIG is not set"}
    group._absent(samples, without)
    for case in group._CASES:
        of_cluster = case in planes.CASES
        if not of_cluster or istiod:
            samples[case].add("ours", Sample(2.0))
        if of_cluster and istiod:
            samples[case].add("istiod", Sample(4.0))
    machine = dict.fromkeys(("cpu", "kernel", "cores", "python", "openssl"), "") | {"versions": {}}
    rows = [(row, samples[row.case]) for row in group._ROWS]
    missing = {"ztunnel": "ZTUNNEL_BIN is not set", **({} if istiod else {"istiod": without["istiod"]})}
    variants = ["ours", "istiod"] if istiod else ["ours"]
    made = document("control", machine, {}, rows, variants, missing)
    assert problems(made) == []
    assert ("against istiod" in text(made)) is istiod
