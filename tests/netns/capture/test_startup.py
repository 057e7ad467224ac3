"""Probing, compiling, self-test: what `Capture.open` finds out before it changes anything."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ebpf import bytecode, compiler, evidence, loader, probe, selftest
from ebpf.capture import Capture
from ebpf.errors import CaptureError, CaptureReason
from tests.netns.capture.lab import Lab

pytestmark = pytest.mark.root


def test_shipped_byte_code_is_what_the_source_compiles_to() -> None:
    compiled, shipped = compiler.compile_in_child(), compiler.shipped()
    assert shipped.source == compiler.source_digest(), "run `python -m ebpf.compiler --write`"
    assert shipped.maps == compiled.maps
    assert compiler.is_fresh(shipped, compiled)
    assert compiler.main(["--check"]) == 0


def test_compiled_byte_code_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiler.obtain(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(compiler, "compile_in_child", None)
    assert compiler.obtain(tmp_path) == first


def test_damaged_cache_is_compiled_anew(tmp_path: Path) -> None:
    first = compiler.obtain(tmp_path)
    (entry,) = tmp_path.iterdir()
    entry.write_text(entry.read_text()[:-100])
    assert compiler.obtain(tmp_path) == first
    assert bytecode.decode(entry.read_text()) == first


def test_without_compiler_the_shipped_byte_code_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "bcc_version", lambda: None)
    assert compiler.obtain(tmp_path) == compiler.shipped()
    assert list(tmp_path.iterdir()) == []


def test_failing_compiler_falls_back_to_the_shipped_byte_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert compiler.obtain(tmp_path / "cache") == compiler.shipped()


def test_everything_probed_works_here(lab: Lab) -> None:
    assert [finding for finding in probe.findings(lab.cgroup, lab.pin_dir) if finding.error] == []


def test_report_says_what_works_and_what_does_not(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main([str(lab.cgroup), str(lab.pin_dir)]) == 0
    assert capsys.readouterr().out.count(": works\n") == 7
    assert probe.main(["/tmp", str(lab.pin_dir)]) == 1
    assert "cgroup2: cgroup2_missing: /tmp is not in a cgroup2 file system; mount" in capsys.readouterr().out
    assert probe.main([]) == 2


@pytest.mark.parametrize(
    ("cgroup", "pin_dir", "reason", "advice"),
    [
        ("/tmp", None, CaptureReason.CGROUP2_MISSING, "mount -t cgroup2"),
        ("/nonexistent", None, CaptureReason.CGROUP2_MISSING, "AMBIENT_CGROUP"),
        (None, "/tmp", CaptureReason.BPFFS_MISSING, "mount -t bpf bpf /tmp"),
        (None, "/tmp/nonexistent/below", CaptureReason.BPFFS_MISSING, "mount -t bpf"),
    ],
)
def test_what_is_missing_is_named_with_advice(
    lab: Lab, cgroup: str | None, pin_dir: str | None, reason: CaptureReason, advice: str
) -> None:
    with pytest.raises(CaptureError) as missing:
        Capture.open(
            cgroup=Path(cgroup) if cgroup else lab.cgroup,
            pin_dir=Path(pin_dir) if pin_dir else lab.pin_dir,
            agent_pid=os.getpid(),
        )
    assert missing.value.reason is reason
    assert advice in str(missing.value)
    assert "\n" not in str(missing.value)


def test_self_test_passes_and_leaves_nothing(lab: Lab) -> None:
    before = sorted(lab.cgroup.iterdir())
    result = selftest.run(compiler.shipped(), lab.cgroup, lab.pin_dir)
    assert result.works, result.reason
    assert sorted(lab.cgroup.iterdir()) == before
    assert lab.pins() == []


def test_self_test_finds_programs_that_do_not_capture(lab: Lab) -> None:
    shipped = compiler.shipped()
    return_1 = bytes.fromhex("b7000000010000009500000000000000")
    idle = replace(shipped.programs["connect4"], code=return_1, maps=(), holes={})
    broken = replace(shipped, programs={**shipped.programs, "connect4": idle})
    result = selftest.run(broken, lab.cgroup, lab.pin_dir)
    assert not result.works
    assert result.reason.startswith("outbound IPv4: ")
    assert "\n" not in result.reason


def test_open_refuses_when_the_self_test_fails(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    Capture.cleanup(lab.cgroup, lab.pin_dir)
    failed = selftest.SelfTestResult(False, "outbound IPv4: timed out")
    monkeypatch.setattr(selftest, "run", lambda *_: failed)
    with pytest.raises(CaptureError, match="outbound IPv4") as refused:
        Capture.open(cgroup=lab.cgroup, pin_dir=lab.pin_dir, agent_pid=os.getpid(), cache_dir=lab.cache_dir)
    assert refused.value.reason is CaptureReason.SELF_TEST_FAILED
    assert lab.pins() == []


def test_program_the_verifier_rejects_is_told_in_one_line(lab: Lab) -> None:
    shipped = compiler.shipped()
    endless = replace(shipped.programs["steer"], code=bytes.fromhex("9500000000000000"), maps=(), holes={})
    broken = replace(shipped, programs={**shipped.programs, "steer": endless})
    kernel = loader.Kernel.open(broken, lab.pin_dir)
    try:
        with pytest.raises(CaptureError, match="R0 !read_ok") as rejected:
            kernel.load("steer")
        assert rejected.value.reason is CaptureReason.VERIFIER_REJECTED
    finally:
        kernel.close()
        Capture.cleanup(lab.cgroup, lab.pin_dir)


def test_own_process_is_known_as_the_kernel_sees_it() -> None:
    assert loader.own_process() == os.getpid()


def test_self_test_is_not_repeated_until_what_it_rests_on_changes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    Capture.cleanup(lab.cgroup, lab.pin_dir)
    tested: list[Path] = []
    really = selftest.run

    def recorded(collection: bytecode.Collection, cgroup: Path, pin_dir: Path) -> selftest.SelfTestResult:
        tested.append(cgroup)
        return really(collection, cgroup, pin_dir)

    def opened(cgroup: Path = lab.cgroup) -> str:
        capture = Capture.open(
            cgroup=cgroup, pin_dir=lab.pin_dir, agent_pid=os.getpid(), cache_dir=lab.cache_dir
        )
        capture.close()
        return capture.chosen.reason

    monkeypatch.setattr(selftest, "run", recorded)
    mode = stat.S_IMODE(lab.pin_dir.stat().st_mode)
    lab.pin_dir.chmod(0o700)
    assert "private namespace" in opened()
    assert "has passed since this kernel started" in opened()
    assert tested == [lab.cgroup]
    opened(lab.pod_cgroup)  # other programs may be attached there
    assert tested == [lab.cgroup, lab.pod_cgroup]
    lab.pin_dir.chmod(0o770)  # others could have said so
    opened()
    assert len(tested) == 3
    lab.pin_dir.chmod(mode)
    assert any("tested-" in path for path in Capture.cleanup(lab.cgroup, lab.pin_dir))
    opened()
    assert len(tested) == 4
    Capture.cleanup(lab.cgroup, lab.pin_dir)


def test_evidence_names_code_kernel_and_place(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = compiler.shipped()
    code = shipped.programs["steer"]
    other = replace(shipped, programs={**shipped.programs, "steer": replace(code, code=code.code[:-8])})
    proofs = {
        evidence.of(shipped, lab.cgroup),
        evidence.of(shipped, None),
        evidence.of(shipped, lab.pod_cgroup),
        evidence.of(other, lab.cgroup),
    }
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "n", "6.19", "#1", "x86_64")))
    assert len({*proofs, evidence.of(shipped, lab.cgroup)}) == 5
