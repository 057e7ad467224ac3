"""The fd store: who may have what, and that a killed agent's clients only wait."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ebpf import netns
from ebpf import sockets as kernel_sockets
from ebpf.capture import Capture
from ebpf.fdstore import FdStore, protocol
from ebpf.fdstore.protocol import ProtocolError, Verb
from ebpf.sockets import State
from tests.netns.capture import apps
from tests.netns.capture.agent import Agent
from tests.netns.capture.apps import Dial
from tests.netns.capture.lab import ROOT, Lab, Pod, network_state, wait_for


@contextmanager
def running(path: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "ebpf.fdstore", "--socket", str(path), *options]
    with subprocess.Popen(command) as process:
        try:
            wait_for(path.exists, "the store listens")
            yield process
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "socket"


@contextmanager
def three() -> Iterator[list[socket.socket]]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()


def numbers(sockets: list[socket.socket]) -> list[int]:
    return [each.fileno() for each in sockets]


def same(fds: list[int], sockets: list[socket.socket]) -> bool:
    """Whether these descriptors are those sockets; closes them."""
    try:
        return [os.fstat(fd).st_ino for fd in fds] == [os.fstat(each.fileno()).st_ino for each in sockets]
    finally:
        protocol.close(fds)


def test_listeners_go_to_another_agent_only_when_the_first_has_gone(path: Path) -> None:
    with running(path), three() as sockets:
        first, second = FdStore(path), FdStore(path)
        first.keep(7, numbers(sockets))
        assert second.take(7) == []
        second.forget(7)
        first.close()
        assert second.take(8) == []
        assert same(second.take(7), sockets)
        third = FdStore(path)
        assert third.take(7) == []
        second.forget(7)
        second.close()
        assert third.take(7) == []
        third.close()


def test_what_nobody_takes_is_closed(path: Path) -> None:
    with running(path, "--hold", "0.05"), three() as sockets:
        address = sockets[0].getsockname()
        agent = FdStore(path)
        agent.keep(7, numbers(sockets))
        assert agent.take(8) == []  # it has read what came before
        agent.close()
        for each in sockets:
            each.close()

        def refused() -> bool:
            with socket.socket() as client:
                return client.connect_ex(address) != 0

        wait_for(refused, "the listeners are closed")


def test_clearing_closes_whatever_anybody_brought(path: Path) -> None:
    with running(path), three() as sockets:
        first, second = FdStore(path), FdStore(path)
        first.keep(7, numbers(sockets))
        first.close()
        assert second.clear()
        assert second.take(7) == []
        second.close()


def test_a_store_that_comes_back_is_told_everything_again(path: Path) -> None:
    with three() as sockets:
        agent = FdStore(path)  # none is there yet
        agent.keep(7, numbers(sockets))
        assert agent.take(7) == []
        with running(path):
            agent.renew(lambda: {7: numbers(sockets)})
            agent.close()
            other = FdStore(path)
            found: list[int] = []
            wait_for(lambda: found.extend(other.take(7)) or bool(found), "the store has seen the agent leave")
            assert same(found, sockets)
        wait_for(lambda: other.take(7) == [], "the store is gone")
        path.unlink()
        with running(path):
            other.renew(lambda: {7: numbers(sockets)})
            other.close()
            last = FdStore(path)
            assert same(last.take(7), sockets)
            last.close()


def test_a_store_that_is_there_is_told_nothing_again(path: Path) -> None:
    """What an agent brought is not replaced by what its predecessor would bring."""
    with running(path), three() as old, three() as new:
        first, second = FdStore(path), FdStore(path)
        first.keep(7, numbers(old))
        assert first.take(8) == []  # it has read what came before
        second.keep(7, numbers(new))
        first.renew(lambda: {7: numbers(old)})
        first.close()
        second.close()
        third = FdStore(path)
        found: list[int] = []
        wait_for(lambda: found.extend(third.take(7)) or bool(found), "the store has seen them leave")
        assert same(found, new)
        third.close()


@pytest.mark.parametrize("packet", [b"", b"x" * 9, b"x" * 10, protocol.encode(Verb.KEEP)])
def test_who_does_not_speak_as_agreed_is_cut_and_others_are_served(path: Path, packet: bytes) -> None:
    with running(path), three() as sockets:
        agent = FdStore(path)
        agent.keep(7, numbers(sockets))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.settimeout(30)
            stranger.connect(str(path))
            stranger.send(packet)
            assert stranger.recv(1) == b""
        agent.close()
        other = FdStore(path)
        assert same(other.take(7), sockets)
        other.close()


def test_a_packet_with_the_wrong_number_of_descriptors_is_refused() -> None:
    for count in (3, 5):
        assert protocol.decode(protocol.encode(Verb.KEEP, 1 << 63), count) == (Verb.KEEP, 1 << 63)
    with pytest.raises(ProtocolError, match="KEEP came with 4"):
        protocol.decode(protocol.encode(Verb.KEEP, 1), 4)
    with pytest.raises(ProtocolError, match="TAKE came with 3"):
        protocol.decode(protocol.encode(Verb.TAKE, 1), 3)


def test_a_directory_that_is_not_ours_alone_is_refused(tmp_path: Path) -> None:
    open_to_all = tmp_path / "shared"
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    command = [sys.executable, "-m", "ebpf.fdstore", "--socket", str(open_to_all / "socket")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"fdstore: {open_to_all} has to be ours alone: chown it to root, chmod 700\n"


@pytest.mark.root
def test_another_user_is_not_served(path: Path) -> None:
    with running(path):
        path.parent.chmod(0o711)
        path.chmod(0o666)
        for folder in list(path.parents)[1:-1]:
            folder.chmod(folder.stat().st_mode | 0o011)
        program = (
            "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
            "s.settimeout(30); s.connect(sys.argv[1]); sys.exit(s.recv(1) != b'')"
        )
        assert subprocess.run([sys.executable, "-c", program, str(path)], timeout=60).returncode == 0


@pytest.mark.root
@pytest.mark.parametrize("version", [4, 6])
def test_clients_of_a_killed_agent_wait_for_the_next_one(lab: Lab, path: Path, version: int) -> None:
    pod, client, neighbour = lab.pods[0], lab.app(lab.pods[0]), lab.app(lab.pods[1])
    out, into = Dial((lab.pods[1].own(version), 8080)), Dial((pod.own(version), 8080))
    with running(path):
        first = Agent(lab, pod, "first", store=path)
        assert client.call(apps.exchange, out).tag == "first-outbound"
        first.kill()
        client.call(apps.hold_question, "asked", ("10.96.0.10", 53))
        waiting = client.start(apps.exchange, out), neighbour.start(apps.exchange, into)
        second = Agent(lab, pod, "second", store=path)
        try:
            answers = [each() for each in waiting]
            answer = client.call(apps.held_answer, "asked")
        finally:
            second.kill()
        assert [ok and answer.tag for ok, answer in answers] == ["second-outbound", "second-inbound"]
        assert answer == "second-names|10.96.0.10 53"
    Capture.cleanup(lab.cgroup, lab.pin_dir)


def capture_with(lab: Lab, path: Path) -> Capture:
    made = Capture.open(
        cgroup=lab.cgroup, pin_dir=lab.pin_dir, agent_pid=os.getpid(), cache_dir=lab.cache_dir
    )
    made.use_store(FdStore(path))
    return made


def listening(pod: Pod) -> set[int]:
    with netns.inside(pod.fd):
        return {each.cookie for each in kernel_sockets.listed([State.LISTEN])}


@pytest.mark.root
def test_a_pod_that_leaves_is_forgotten(lab: Lab, path: Path) -> None:
    pod = lab.pods[0]
    with running(path):
        capture = capture_with(lab, path)
        capture.renew()
        before = listening(pod)
        enrolled = capture.enrol(pod.network())
        assert len(listening(pod) - before) >= 3
        assert capture.withdraw(enrolled)
        wait_for(lambda: listening(pod) == before, "nobody holds its listeners any more")
        capture.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


@pytest.mark.root
def test_listeners_of_another_namespace_are_not_adopted(lab: Lab, path: Path) -> None:
    pod = lab.pods[0]
    with running(path), three() as sockets:
        capture = capture_with(lab, path)
        cookie = capture.enrol(pod.network()).cookie
        capture.close()
        stranger = FdStore(path)
        stranger.keep(cookie, numbers(sockets))
        stranger.close()
        again = capture_with(lab, path)
        enrolled = again.enrol(pod.network())
        lab.serve_agent(enrolled)
        client = lab.app(pod)
        assert client.call(apps.exchange, Dial((lab.pods[1].v4, 8080))).tag == "outbound"
        lab.stop_agent()
        again.withdraw(enrolled)
        again.close()
    Capture.cleanup(lab.cgroup, lab.pin_dir)


@pytest.mark.root
def test_cleanup_closes_what_is_kept_and_restores_pods(lab: Lab, path: Path) -> None:
    pod = lab.pods[0]
    before = network_state(pod)
    with running(path):
        Agent(lab, pod, "killed", store=path).kill()
        assert network_state(pod) != before
        environ = {
            "PATH": os.environ["PATH"],
            "AMBIENT_CGROUP": str(lab.cgroup),
            "AMBIENT_PIN_DIR": str(lab.pin_dir),
            "AMBIENT_FD_STORE": str(path),
        }
        command = [sys.executable, "-m", "ztunnel", "cleanup"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert "removed pod slot 0\n" in done.stdout
        assert f"removed listeners kept by {path}\n" in done.stdout
    assert lab.pins() == []
    assert network_state(pod) == before
    netns = subprocess.run(["ip", "netns", "exec", pod.name, "ss", "-ltnH"], capture_output=True, text=True)
    assert ":15001" not in netns.stdout
