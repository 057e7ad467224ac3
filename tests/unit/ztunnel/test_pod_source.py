"""Who tells which pods are in: started, said, replaced. Against a scripted API server."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from istiodlite.kube import Access
from istiodlite.kube.access import Pem
from tests.unit.istiodlite.kube.apiserver import ApiServer, until
from ztunnel.config import load
from ztunnel.enrol.choice import Source
from ztunnel.enrol.source import EnrolError, PodSource
from ztunnel.enrol.zds import Add, Delete, Request


class Listening:
    """In place of the pods of an agent."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0

    def __len__(self) -> int:
        return sum(isinstance(one, Add) for one in self.requests)

    def connected(self) -> None:
        self.connections += 1

    def disconnected(self) -> None:
        self.requests.append(Delete("disconnected"))

    async def handle(self, request: Request) -> str:
        self.requests.append(request)
        return ""


class InCluster(PodSource):
    """The credentials are not where a kubelet puts them."""

    access: Access

    def _access(self) -> Access:
        return self.access


@pytest.mark.trio
async def test_a_cni_agent_that_turns_up_takes_over(tmp_path: Path) -> None:
    server = ApiServer(tmp_path)
    uds = tmp_path / "zds.sock"
    config = load({"NODE_NAME": "n1", "INPOD_UDS": str(uds), "AMBIENT_POD_CGROUPS": str(tmp_path)})
    pods = Listening()
    source = InCluster(config, pods, lambda: False, {"KUBERNETES_SERVICE_HOST": "10.96.0.1"})  # type: ignore[arg-type]
    assert source.exists
    async with server.serve(), trio.open_nursery() as nursery:
        source.access = server.access
        nursery.start_soon(source.run)
        await until(lambda: pods.connections == 1)
        assert source.chosen is not None
        assert source.chosen.source is Source.KUBERNETES
        assert "kubernetes (there is no ZDS socket): 0 in, 0 waiting" in source.note()
        assert source.describe()["waiting"] == {}
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            await listener.bind(str(uds))
            listener.listen(5)
            await until(lambda: pods.connections == 2)
        assert source.chosen.source is Source.ZDS
        assert source.note() == "enrolment: zds (a CNI agent answers at the ZDS socket)"
        assert source.describe() == {"source": "zds", "why": "a CNI agent answers at the ZDS socket"}
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_without_credentials_it_says_what_to_set(tmp_path: Path) -> None:
    config = load({"NODE_NAME": "n1", "AMBIENT_ENROL": "kubernetes"})
    source = PodSource(config, Listening(), lambda: False, {"HOME": str(tmp_path)})  # type: ignore[arg-type]
    with pytest.raises(
        EnrolError, match=r"AMBIENT_ENROL: no cluster: not in a pod, and .*; set KUBECONFIG=FILE"
    ):
        await source.run()


@pytest.mark.trio
async def test_a_ca_that_is_none_is_said(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    ca.write_text("none")
    config = load({"NODE_NAME": "n1", "AMBIENT_ENROL": "kubernetes"})
    source = InCluster(config, Listening(), lambda: False, {})  # type: ignore[arg-type]
    source.access = Access("https://127.0.0.1:1", authority=Pem(ca), origin="the pod's service account")
    with pytest.raises(EnrolError, match="service account: the CA is not a PEM certificate; correct it"):
        await source.run()


def test_outside_of_a_cluster_there_is_nobody_to_wait_for_without_a_socket() -> None:
    config = load({"NODE_NAME": "n1", "INPOD_UDS": ""})
    assert not PodSource(config, Listening(), lambda: False, {}).exists  # type: ignore[arg-type]
