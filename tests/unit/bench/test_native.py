"""The load generator and the relay on loopback: figures only from bytes that arrived, and liars are found out."""

import json
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bench.mesh import established
from tests.bench.native import build
from tests.bench.process import Process
from tests.bench.testbed import LoadRun, MeasurementError
from tests.support.ports import free_port, listening_socket


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bin"))


@contextmanager
def serving(host: str, programs: Path, tmp_path: Path) -> Iterator[str]:
    port = free_port(host.strip("[]"))
    where = f"{host}:{port}"
    command = [str(programs / "load"), "serve", where]
    process = Process("server", command, tmp_path / "log", proxy=False, environment={})
    try:
        process.wait_listening(port)
        yield where
    finally:
        process.stop()


@pytest.fixture(params=["127.0.0.1", "[::1]"])
def server(request: pytest.FixtureRequest, programs: Path, tmp_path: Path) -> Iterator[str]:
    with serving(request.param, programs, tmp_path) as where:
        yield where


@pytest.fixture
def server4(programs: Path, tmp_path: Path) -> Iterator[str]:
    with serving("127.0.0.1", programs, tmp_path) as where:
        yield where


def load(programs: Path, *arguments: str, stdin: str | None = None) -> tuple[int, list[dict[str, Any]], str]:
    """(status, JSON objects printed, complaint)"""
    done = subprocess.run(
        [str(programs / "load"), *arguments], input=stdin, capture_output=True, text=True, timeout=30
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.parametrize("direction", ["up", "down"])
def test_bulk_reports_bytes_that_fit_its_rate(programs: Path, server: str, direction: str) -> None:
    status, (got,), _ = load(programs, "bulk", server, "--conns", "3", "--seconds", "0.2", direction)
    assert status == 0
    assert got["bytes"] > 0
    assert got["gbit_s"] * got["seconds"] / 8 * 1e9 <= got["bytes"] * 1.001
    assert 0 <= got["fairness"] <= 1


def test_copied_stream_accounts_for_every_byte(programs: Path, server: str) -> None:
    words = ("bulk", server, "--conns", "2", "--writes", "1000", "--seconds", "0.2", "up")
    status, (got,), _ = load(programs, *words)
    assert status == 0
    assert got["bytes"] > 0


def test_dials_count_what_their_rate_says(programs: Path, server: str) -> None:
    status, (got,), _ = load(programs, "dials", server, "--seconds", "0.2")
    assert status == 0
    assert got["count"] >= got["per_s"] * 0.2 > 0
    assert 0 < got["p50_us"] <= got["p99_us"]


@pytest.mark.parametrize("size", ["1", "64", "100000"])
def test_exchange_counts_what_its_rate_says(programs: Path, server: str, size: str) -> None:
    status, (got,), _ = load(programs, "rr", server, "--conns", "4", "--size", size, "--seconds", "0.2")
    assert status == 0
    assert got["count"] >= got["per_s"] * got["seconds"] > 0
    assert 0 < got["p50_us"] <= got["p99_us"]


def test_connections_are_counted_and_none_fails(programs: Path, server: str) -> None:
    status, (got,), _ = load(programs, "conns", server, "--conns", "8", "--seconds", "0.2")
    assert (status, got["failed"]) == (0, 0)
    assert got["count"] == pytest.approx(got["per_s"] * got["seconds"], rel=0.01)


def test_connections_that_are_refused_count_as_failed(programs: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    _, (got,), _ = load(programs, "conns", nowhere, "--conns", "2", "--seconds", "0.1")
    assert got["count"] == 0
    assert got["failed"] > 0


def test_idle_connections_are_held_until_stdin_ends(programs: Path, server: str) -> None:
    status, lines, _ = load(programs, "idle", server, "--conns", "50", stdin="")
    assert (status, lines) == (0, [{"open": 50}, {"closed": 50}])


def test_a_gated_load_waits_to_begin_and_keeps_its_connections_until_told(
    programs: Path, server4: str
) -> None:
    command = [str(programs / "load"), "rr", server4, "--conns", "3", "--seconds", "0.1", "--gated"]
    with LoadRun(command) as run:
        assert run.line() == {"ready": 3}
        port = int(server4.rsplit(":", 1)[1])
        assert connections_to(port) == 3
        run.open_gate()
        assert run.line()["count"] > 0
        assert connections_to(port) == 3


def test_a_load_that_fails_says_why(programs: Path) -> None:
    command = [str(programs / "load"), "rr", f"127.0.0.1:{free_port()}", "--gated"]
    with pytest.raises(MeasurementError, match="connect: Connection refused"), LoadRun(command) as run:
        run.line()


def test_a_load_that_hangs_is_ended(server4: str, programs: Path) -> None:
    with LoadRun([str(programs / "load"), "rr", server4, "--gated"]) as run:
        run.line()
        with pytest.raises(MeasurementError, match="nothing from the load within"):
            run.line(deadline_s=0.05)  # the gate is closed: nothing comes


def test_check_passes_an_honest_echo(programs: Path, server: str) -> None:
    status, (got,), _ = load(programs, "check", server, "--conns", "3", "--mebibytes", "2")
    assert (status, got["bytes"]) == (0, 6 << 20)


def test_the_relay_keeps_every_byte_and_half_close(programs: Path, server4: str, tmp_path: Path) -> None:
    port = free_port()
    here = f"127.0.0.1:{port}"
    relay = Process(
        "relay", [str(programs / "relay"), here, server4], tmp_path / "relay", proxy=True, environment={}
    )
    try:
        relay.wait_listening(port)
        assert load(programs, "check", here, "--conns", "4", "--mebibytes", "3")[0] == 0
        assert load(programs, "bulk", here, "--conns", "2", "--seconds", "0.1", "up")[0] == 0
        assert relay.cpu() > 0
        assert relay.rss() > 0
    finally:
        relay.stop()


def connections_to(port: int) -> int:
    """Established connections whose own end is `port` (the server's side)."""
    return established(Path("/proc/self/net/tcp").read_text(), port)


def _serve_once(handle: Callable[[socket.socket], None]) -> tuple[str, threading.Thread]:
    listener = listening_socket()

    def run() -> None:
        with listener, listener.accept()[0] as peer:
            handle(peer)

    thread = threading.Thread(target=run)
    thread.start()
    return f"127.0.0.1:{listener.getsockname()[1]}", thread


def test_a_relay_that_loses_a_byte_gets_no_figure(programs: Path) -> None:
    def lossy(peer: socket.socket) -> None:
        received = -8
        while data := peer.recv(1 << 20):
            received += len(data)
        peer.sendall(struct.pack(">Q", received - 1))

    where, thread = _serve_once(lossy)
    status, lines, complaint = load(programs, "bulk", where, "--seconds", "0.1", "up")
    thread.join()
    assert (status, lines) == (1, [])
    assert "arrived" in complaint


def test_a_relay_that_changes_a_byte_is_found_out(programs: Path) -> None:
    def flipping(peer: socket.socket) -> None:
        peer.recv(8, socket.MSG_WAITALL)
        data = bytearray(peer.recv(4096))
        data[7] ^= 1
        peer.sendall(data)
        while peer.recv(1 << 20):
            pass

    where, thread = _serve_once(flipping)
    status, _, complaint = load(programs, "check", where)
    thread.join()
    assert status == 1
    assert "wrong byte at 7" in complaint


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["rr", "127.0.0.1"], "not ADDR:PORT"),
        (["rr", "localhost:1"], "not an address"),
        (["rr", "127.0.0.1:1", "--size", "0"], "must be positive"),
        (["rr", "127.0.0.1:1", "--speed", "9"], "unknown argument"),
        (["dance", "127.0.0.1:1"], "unknown command"),
        (["rr"], "usage"),
    ],
)
def test_wrong_arguments_are_named(programs: Path, arguments: list[str], complaint: str) -> None:
    status, _, said = load(programs, *arguments)
    assert status == 1
    assert complaint in said
