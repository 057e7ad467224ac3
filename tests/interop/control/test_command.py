"""The command line and the status pages of a running control plane."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.interop.control.conftest import ControlPlane, policy, service
from tests.support.ports import listening_socket
from tests.support.serving import COMMAND, ROOT, wait_until


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_a_missing_folder_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    done = run("serve", "--objects", str(tmp_path / "none"), "--data", str(tmp_path / "data"))
    assert done.returncode == 1
    assert done.stderr == (
        f"istiodlite: {tmp_path}/none: no such folder; create it or name another with --objects\n"
    )


def test_a_taken_port_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with listening_socket() as taken:
        port = taken.getsockname()[1]
        status = ["--listen", f"127.0.0.1:{port}", "--status-port", "0"]
        done = run("serve", "--objects", str(tmp_path), "--data", str(tmp_path / "data"), *status)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"istiodlite: cannot listen on 127.0.0.1:{port}: the port")
    assert "Traceback" not in done.stderr


def test_a_taken_status_port_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with listening_socket() as taken:
        port = taken.getsockname()[1]
        arguments = ["--listen", "127.0.0.1:0", "--status-port", str(port)]
        done = run("serve", "--objects", str(tmp_path), "--data", str(tmp_path / "data"), *arguments)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == f"istiodlite: cannot listen on 127.0.0.1:{port}: the port is taken; use --status-port"


def test_a_data_path_that_is_no_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("root-cert", "--data", str(tmp_path / "file"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "choose a writable --data directory" in done.stderr


def test_root_cert_is_the_same_each_time_and_its_key_is_private(tmp_path: Path) -> None:
    first, second = (run("root-cert", "--data", str(tmp_path / "d")).stdout for _ in range(2))
    assert first == second
    assert first.startswith("-----BEGIN CERTIFICATE-----")
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "d" / "ca-key.pem").stat().st_mode) == 0o600


def test_printed_root_and_printed_token_are_all_an_agent_needs(control: ControlPlane) -> None:
    data = ["--data", str(control.data)]
    bound = ["--pod", "ztunnel-n1", "--pod-uid", "uid-ztunnel-n1", "--node", "n1", "--ttl", "60"]
    agent = control.agent(token=run("token", *data, *bound).stdout.strip())
    agent.root = run("root-cert", *data).stdout.encode()
    with agent.stream() as stream:
        stream.start()
        stream.receive()


def test_a_pod_without_its_uid_makes_no_token(tmp_path: Path) -> None:
    done = run("token", "--data", str(tmp_path), "--pod", "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "istiodlite: --pod and --pod-uid belong together; give both or none\n"


def test_two_processes_that_start_together_create_one_root(tmp_path: Path) -> None:
    command = [*COMMAND, "root-cert", "--data", str(tmp_path / "d")]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(4)]
    assert len({process.communicate(timeout=60)[0] for process in started}) == 1


def test_convert_prints_resources_as_yaml_and_as_json(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(yaml.safe_dump(service("shop", "web", "10.96.0.10")))
    as_yaml = yaml.safe_load(run("convert", str(tmp_path)).stdout)
    as_json = json.loads(run("convert", "-o", "json", str(tmp_path / "web.yaml")).stdout)
    assert as_yaml == as_json
    assert as_yaml["services"][0]["service"]["addresses"] == [{"address": "10.96.0.10"}]


def test_convert_names_what_is_wrong_and_fails(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(policy("shop", "p", rule=[{}])))
    done = run("convert", str(tmp_path))
    assert done.returncode == 1
    assert "p.yaml: document 1: AuthorizationPolicy shop/p: spec.rule: unknown field" in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ["--status-port", "70000"],
        ["--listen", "here"],
        ["--debounce-quiet", "-1"],
        ["--trusted-node-account", "x"],
    ],
)
def test_wrong_values_are_usage_errors(tmp_path: Path, wrong: list[str]) -> None:
    done = run("serve", "--objects", str(tmp_path), "--data", str(tmp_path / "d"), *wrong)
    assert done.returncode == 2
    assert f'"{wrong[1]}" is not' in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_the_commands() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("serve", "token", "root-cert", "convert"):
        assert command in done.stdout


def test_a_broken_policy_keeps_its_last_good_version_and_is_reported(control: ControlPlane) -> None:
    control.put(policy("shop", "deny", action="DENY", rules=[{}]))
    wait_until(lambda: "shop/deny" in control.get("/debug/resources")[1], "the policy")
    control.put(policy("shop", "deny", action="DENY", rules=[{"form": []}]))
    wait_until(lambda: control.metric("istiodlite_object_errors") == 1, "the error")
    assert "spec.rules[0].form: unknown field" in control.json("/debug/errors")["errors"][0]
    assert "spec.rules[0].form" in control.log
    assert "shop/deny" in control.get("/debug/resources")[1]
    control.put(policy("shop", "deny", action="DENY", rules=[{}]))
    wait_until(lambda: control.metric("istiodlite_object_errors") == 0, "the repair")


def test_a_huge_file_is_refused_quickly_and_hurts_nothing(control: ControlPlane) -> None:
    (control.objects / "huge.yaml").write_bytes(b"a: b\n" * 2_200_000)
    wait_until(lambda: control.metric("istiodlite_object_errors") == 1, "the error")
    assert "over the limit of 4194304; split the file" in control.json("/debug/errors")["errors"][0]
    assert "shop/web" in control.get("/debug/resources")[1]


def test_a_folder_that_vanishes_changes_nothing_and_one_that_returns_is_read(control: ControlPlane) -> None:
    aside = control.objects.with_name("aside")
    control.objects.rename(aside)
    wait_until(lambda: control.metric("istiodlite_object_errors") == 1, "the error")
    assert "Kubernetes//Pod/shop/web" in control.get("/debug/resources")[1]
    os.rename(aside, control.objects)
    control.put(service("shop", "later", "10.96.0.99"))
    wait_until(lambda: "shop/later" in control.get("/debug/resources")[1], "the new object")


def test_debug_pages_are_for_this_machine_unless_opened(control: ControlPlane) -> None:
    assert control.get("/debug/clients")[0] == 200
    assert control.get("/nowhere")[0] == 404


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x00\xff\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n", b""])
def test_the_status_port_survives_garbage(control: ControlPlane, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", control.status_port), timeout=30) as sock:
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1000)
    assert control.get("/ready")[0] == 200
