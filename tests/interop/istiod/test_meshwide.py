"""Settings of the whole mesh, with both control planes: PeerAuthentication of the root namespace, trust domains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.istiod.answers import STRICT, Plain, ask, differences, renamed
from tests.interop.istiod.objects import Applied, applied
from tests.interop.istiod.process import Istiod
from tests.interop.kube.conftest import Cluster, KubeServing
from tests.support.serving import wait_until

pytestmark = pytest.mark.istiod
WORD = "wide"
MESH = "trustDomain: wide-td\ntrustDomainAliases: [old-td]\n"
PLAIN = "Kubernetes//Pod/wide-plain/plain"
# istiod tells agents the one name of the trust domain that was written, ours all of them: docs/control-plane.md.
ALIASED = "wide-plain/aliased: groups: "


class Planes:
    """Both, and what each answers for the objects of meshwide.yaml."""

    def __init__(self, cluster: Cluster, istiod: Istiod, istiodlite: KubeServing, wide: Applied) -> None:
        self.cluster, self._planes, self._wide = cluster, (istiod, istiodlite), wide

    def answers(self) -> list[Plain]:
        token = self.cluster.token("istio-system", "ztunnel", audience="istio-ca")
        mark = self._wide.mark
        return [renamed(ask(one.agent(token), mark), mark, WORD) for one in self._planes]

    def differ(self) -> list[str]:
        return differences(*self.answers())

    @contextlib.contextmanager
    def root(self, *specs: dict[str, Any]) -> Iterator[None]:
        """PeerAuthentications of the root namespace, the first the oldest."""
        made = []
        try:
            for number, spec in enumerate(specs):
                meta = {"name": f"{self._wide.mark}-{number}", "namespace": "istio-system"}
                body = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication"}
                made.append({**body, "metadata": meta, "spec": spec})
                self._put_later(made)
            yield
        finally:
            for one in made:
                self.cluster.delete(one)

    def _put_later(self, made: list[dict[str, Any]]) -> None:
        """Seconds are the finest the API server writes down."""
        *older, new = made
        ages = [self._age(one) for one in older]
        while self.cluster.put(new)["metadata"]["creationTimestamp"] in ages:
            self.cluster.delete(new)

    def _age(self, body: dict[str, Any]) -> str:
        path = f"{self.cluster.path(body)}/{body['metadata']['name']}"
        return str(self.cluster.get(path)["metadata"]["creationTimestamp"])


@contextlib.contextmanager
def running(cluster: Cluster, wide: Applied, folder: Path, mesh: str = "") -> Iterator[Planes]:
    (folder / "lite").mkdir()
    (folder / "mesh.yaml").write_text(mesh)
    istiod = Istiod(cluster, folder, mesh) if mesh else Istiod(cluster, folder)
    flags = ("--mesh-config", str(folder / "mesh.yaml")) if mesh else ()
    lite = KubeServing(cluster, folder / "lite", *flags)
    try:
        yield Planes(cluster, istiod.start(), lite.start(), wide)
    finally:
        istiod.stop()
        assert lite.stop() == 0, lite.log


@pytest.fixture(scope="module")
def wide(cluster: Cluster) -> Iterator[Applied]:
    with applied(cluster, Path(__file__).with_name("meshwide.yaml"), WORD) as one:
        yield one


@pytest.fixture(scope="module")
def planes(cluster: Cluster, wide: Applied, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planes]:
    with running(cluster, wide, tmp_path_factory.mktemp("wide")) as one:
        yield one


def is_strict(answers: Plain) -> bool:
    listed = answers.get(PLAIN, {}).get("workload", {}).get("authorization_policies", [])
    return any(STRICT in name for name in listed)


OPEN, CLOSED = {"mtls": {"mode": "PERMISSIVE"}}, {"mtls": {"mode": "STRICT"}}
CASES = [
    ("strict", (CLOSED,), True),
    ("permissive", (OPEN,), False),
    ("disable", ({"mtls": {"mode": "DISABLE"}},), False),
    ("unset", ({"mtls": {"mode": "UNSET"}},), False),
    ("the older of two", (CLOSED, OPEN), True),
    ("the older of two, permissive", (OPEN, CLOSED), False),
    ("with a selector", ({"selector": {"matchLabels": {"app": "plain"}}, **CLOSED},), False),
    (
        "with a selector beside one without",
        ({"selector": {"matchLabels": {"app": "plain"}}, **OPEN}, CLOSED),
        True,
    ),
]


@pytest.mark.parametrize(("specs", "strict"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_mesh_wide_strictness_is_the_same(
    planes: Planes, specs: tuple[dict[str, Any], ...], strict: bool
) -> None:
    with planes.root({"selector": {"matchLabels": {"nobody": "x"}}}, *specs):
        # Both have seen the change, and then say the same of everything.
        wait_until(lambda: [is_strict(one) for one in planes.answers()] == [strict, strict], "the mode holds")
        wait_until(lambda: planes.differ() == [], lambda: "\n".join(planes.differ()))


def test_another_trust_domain_is_told_alike(cluster: Cluster, wide: Applied, tmp_path: Path) -> None:
    with running(cluster, wide, tmp_path, MESH) as planes:

        def unexplained() -> list[str]:
            return [line for line in planes.differ() if not line.startswith(ALIASED)]

        wait_until(lambda: PLAIN in planes.answers()[0], "istiod serves the pods")
        wait_until(lambda: unexplained() == [], lambda: "\n".join(unexplained()))
        for answers in planes.answers():
            assert answers[PLAIN]["workload"]["trust_domain"] == "wide-td"
        theirs, ours = (
            [
                match["exact"]
                for match in answers["wide-plain/aliased"]["groups"][0]["rules"][0]["matches"][0][
                    "principals"
                ]
            ]
            for answers in planes.answers()
        )
        assert theirs == ["old-td/ns/a/sa/x"]
        assert ours == ["wide-td/ns/a/sa/x", "old-td/ns/a/sa/x"]
