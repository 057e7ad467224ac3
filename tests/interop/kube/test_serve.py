"""`istiodlite serve --kube` as a process, on the scripted server: start, readiness, the root and the end."""

from __future__ import annotations

import datetime
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from istiodlite.ca.authority import Authority
from istiodlite.ca.files import DataError
from istiodlite.ca.secrets import load_or_create_secret
from istiodlite.cli import main
from istiodlite.kube import ApiError, KubeClient
from tests.support import pki
from tests.support.ports import free_port
from tests.unit.istiodlite.kube.apiserver import PATHS, TOKEN, ApiServer, Fault, status, until
from tests.unit.istiodlite.kube.objects import namespace, pod, policy
from tests.unit.istiodlite.kube.test_secrets import files

ROOT = Path(__file__).resolve().parents[3]
NOW = datetime.datetime.now(datetime.UTC)
SECRET = ("istio-system", "istio-ca-secret")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ApiServer]:
    api = ApiServer(tmp_path)
    for body in (namespace("shop"), namespace("istio-system"), pod("web"), policy("deny")):
        api.put(body)
    async with api.serve():
        yield api


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


class Process:
    def __init__(self, folder: Path, port: int) -> None:
        self.log_path, self.port = folder / "log", port
        self.process: trio.Process | None = None

    async def get(self, path: str) -> tuple[int, str]:
        return await trio.to_thread.run_sync(fetch, self.port, path)

    async def until(self, path: str, condition: Callable[[int, str], bool]) -> None:
        with trio.fail_after(60):
            while not condition(*await self.get(path)):
                await trio.sleep(0.02)

    @property
    def log(self) -> str:
        return self.log_path.read_text()


@asynccontextmanager
async def serving(server: ApiServer, folder: Path, *arguments: str) -> AsyncIterator[Process]:
    """The process; it is ended by SIGTERM and has to take that well."""
    config = {
        "current-context": "x",
        "clusters": [
            {"name": "x", "cluster": {"server": server.access.server, "certificate-authority": "ca.crt"}}
        ],
        "users": [{"name": "x", "user": {"token": TOKEN}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    one = Process(folder, free_port())
    command = [
        *(sys.executable, "-m", "istiodlite", "serve", "--kube", "--kubeconfig", str(folder / "kubeconfig")),
        *("--listen", f"127.0.0.1:{free_port()}", "--status-port", str(one.port), *arguments),
    ]
    with one.log_path.open("ab") as log:
        one.process = await trio.lowlevel.open_process(command, stderr=log, cwd=ROOT)
    try:
        yield one
    finally:
        one.process.terminate()
        with trio.move_on_after(60, shield=True):
            await one.process.wait()
    assert one.process.returncode == 0, one.log
    assert "Traceback" not in one.log, one.log


@pytest.mark.trio
async def test_it_is_not_ready_before_all_is_listed_and_then_serves(
    server: ApiServer, tmp_path: Path
) -> None:
    held = Fault("list", "AuthorizationPolicy", gate=trio.Event())
    server.faults.append(held)
    async with serving(server, tmp_path) as one:
        await one.until("/ready", lambda code, _: code == 503)
        await until(lambda: server.watched("Pod"))
        assert (await one.get("/ready"))[0] == 503
        assert "serving xDS" not in one.log
        assert held.gate is not None
        held.gate.set()
        await one.until("/ready", lambda code, _: code == 200)
        text = (await one.get("/debug/resources"))[1]
        assert "Kubernetes//Pod/shop/web" in text
        assert "shop/deny" in text
        # The root got into the namespaces, from the secret that was made for it.
        await until(lambda: len(server.objects[PATHS["ConfigMap"]]) == 2)
        assert SECRET in server.objects[PATHS["Secret"]]


@pytest.mark.trio
async def test_an_outage_keeps_it_ready_and_shows_in_the_age(server: ApiServer, tmp_path: Path) -> None:
    async with serving(server, tmp_path) as one:
        await one.until("/ready", lambda code, _: code == 200)
        await until(lambda: server.watched("Pod"))
        for verb in ("list", "watch"):
            server.faults.append(Fault(verb, "Pod", times=10_000, cut=True))
        server.drop()
        aged = 'istiodlite_source_resource_age_seconds{resource="pods"} 0.0'
        await one.until("/metrics", lambda _, text: aged not in text)
        assert (await one.get("/ready"))[0] == 200
        assert "Kubernetes//Pod/shop/web" in (await one.get("/debug/resources"))[1]
        server.faults.clear()
        await one.until("/metrics", lambda _, text: aged in text)


@pytest.mark.trio
async def test_a_plugged_in_ca_needs_no_secret(server: ApiServer, tmp_path: Path) -> None:
    root = pki.Authority.root()
    cacerts = tmp_path / "cacerts"
    cacerts.mkdir()
    for name, data in files(root.intermediate(), roots=root.pem).items():
        (cacerts / name).write_bytes(data)
    async with serving(server, tmp_path, "--cacerts", str(cacerts)) as one:
        await one.until("/ready", lambda code, _: code == 200)
        await until(lambda: len(server.objects[PATHS["ConfigMap"]]) == 2)
    maps = server.objects[PATHS["ConfigMap"]].values()
    assert {body["data"]["root-cert.pem"].encode() for body in maps} == {root.pem}
    assert server.objects[PATHS["Secret"]] == {}


@pytest.mark.trio
async def test_of_two_that_start_together_one_makes_the_root_and_both_use_it(server: ApiServer) -> None:
    made: list[Authority] = []

    async def start() -> None:
        async with KubeClient(server.access) as client:
            made.append(await load_or_create_secret(client, "istio-system", "cluster.local", NOW))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(start)
    assert len({one.roots_pem for one in made}) == 1
    assert sum(one.method == "POST" for one in server.requests) >= 1


@pytest.mark.trio
async def test_an_old_root_is_issued_again_with_its_key_and_subject(server: ApiServer) -> None:
    async with KubeClient(server.access) as client:
        first = await load_or_create_secret(client, "istio-system", "cluster.local", NOW)
        server.objects[PATHS["Secret"]][SECRET]["metadata"]["labels"] = {"kept": "yes"}
        later = NOW + datetime.timedelta(days=3650 * 0.9)
        second = await load_or_create_secret(client, "istio-system", "other.domain", later)
        third = await load_or_create_secret(client, "istio-system", "cluster.local", later)
    assert second.certificate != first.certificate
    assert second.certificate.public_key() == first.certificate.public_key()
    assert second.certificate.subject == first.certificate.subject
    assert third.certificate == second.certificate
    assert server.objects[PATHS["Secret"]][SECRET]["metadata"]["labels"] == {"kept": "yes"}


@pytest.mark.trio
async def test_a_secret_that_cannot_be_used_is_never_replaced(server: ApiServer) -> None:
    broken: dict[str, Any] = {
        "kind": "Secret",
        "metadata": {"name": SECRET[1], "namespace": SECRET[0]},
        "data": {},
    }
    server.put(broken)
    async with KubeClient(server.access) as client:
        with pytest.raises(DataError, match="restore the secret"):
            await load_or_create_secret(client, "istio-system", "cluster.local", NOW)
    assert server.objects[PATHS["Secret"]][SECRET]["data"] == {}


@pytest.mark.trio
async def test_without_the_right_to_the_secret_the_reason_is_passed_on(server: ApiServer) -> None:
    server.faults.append(Fault("post", "Secret", answer=status(403, "Forbidden", "no")))
    async with KubeClient(server.access) as client:
        with pytest.raises(ApiError, match="no"):
            await load_or_create_secret(client, "istio-system", "cluster.local", NOW)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kube", "--data", "d"], "--data belongs to --objects"),
        (["--objects", "."], "--objects needs --data"),
        (["--objects", ".", "--data", "d", "--context", "c"], "belong to --kube"),
        (["--kube", "--kubeconfig", "/nonexistent"], "/nonexistent: No such file or directory"),
    ],
)
def test_arguments_that_do_not_fit_are_said_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_folder_and_cluster_together_are_wrong_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "istiodlite", "serve", "--kube", "--objects", "x"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "not allowed with" in done.stderr
