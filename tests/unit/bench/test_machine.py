"""Facts about the machine and its processes."""

import os
import sys
import time
from pathlib import Path

import pytest

from tests.bench import openssl
from tests.bench.machine import busy_seconds, facts
from tests.bench.native import BuildError
from tests.bench.process import Process, ProcessError, listening_ports, network_of, process_cpu, process_rss
from tests.support.ports import listening_socket


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_facts_name_what_a_result_needs() -> None:
    found = facts(Path.cwd(), {"envoy": "1.2"})
    assert found["cores"] == os.cpu_count()
    assert found["versions"]["envoy"] == "1.2"
    assert {"cpu", "kernel", "python", "openssl", "date"} <= {name for name, value in found.items() if value}


def test_cpu_time_of_a_process_is_what_it_burnt() -> None:
    before, busy = process_cpu(os.getpid()), busy_seconds()
    burn(0.1)
    assert process_cpu(os.getpid()) - before >= 0.1
    assert busy_seconds() - busy >= 0.05


def test_resident_memory_grows_with_what_is_touched() -> None:
    before = process_rss(os.getpid())
    held = bytearray(os.urandom(1)) * 30_000_000
    assert process_rss(os.getpid()) - before > 20
    assert held


def test_listening_ports_are_seen_without_connecting() -> None:
    with listening_socket() as sock:
        assert sock.getsockname()[1] in listening_ports(os.getpid())


def test_a_program_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no certificate')"]
    process = Process("proxy", command, tmp_path / "log", proxy=True, environment={})
    try:
        with pytest.raises(ProcessError, match="proxy ended with status 1: no certificate"):
            process.wait_listening(1)
    finally:
        process.stop()


def test_a_namespace_that_a_program_begins_in_is_not_where_it_listens(tmp_path: Path) -> None:
    with listening_socket() as sock:
        port, ours = sock.getsockname()[1], network_of("/proc/self/ns/net")
        process = Process("proxy", ["sleep", "60"], tmp_path / "log", proxy=True, environment=os.environ)
        try:
            process.wait_listening(port)
            with pytest.raises(ProcessError, match="does not listen"):
                process.wait_listening(port, deadline_s=0.1, passed={ours})
        finally:
            process.stop()


def test_another_openssl_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"no libssl\.so\.3"):
        openssl.directory(str(tmp_path), tmp_path)
    (tmp_path / "libssl.so.3").touch()
    assert openssl.directory(str(tmp_path), tmp_path) == tmp_path


def test_libraries_of_a_wheel_get_their_ordinary_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, libraries = tmp_path / "psycopg2", tmp_path / "psycopg2_binary.libs"
    package.mkdir()
    libraries.mkdir()
    (package / "__init__.py").touch()
    for name in ("libcrypto-12ab.so.3", "libssl-34cd.so.3"):
        (libraries / name).write_text(name)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = openssl.directory("wheel", tmp_path / "links")
    assert (found / "libssl.so.3").read_text() == "libssl-34cd.so.3"
    assert (found / "libcrypto.so.3").read_text() == "libcrypto-12ab.so.3"
    assert (found / "libcrypto-12ab.so.3").exists()
    assert openssl.directory("wheel", tmp_path / "links") == found
