"""The revocation file: when it is read, and what stays in force when it cannot be."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from ztunnel.crl import LOOK, SETTLED, CrlFile

pytestmark = pytest.mark.trio


class Judge:
    """Takes lists as the engine does."""

    def __init__(self) -> None:
        self.lists: list[bytes] = []

    def set_crls(self, files: Sequence[bytes]) -> None:
        (content,) = files
        if content.startswith(b"broken"):
            raise ValueError("its PEM data is broken")
        self.lists.append(content)


class Mount:
    """A ConfigMap as the kubelet mounts it: a file that is a link through a link to the present version."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._versions = folder, 0
        self.path = folder / "ca-crl.pem"

    def publish(self, content: bytes) -> None:
        self._versions += 1
        version = self._folder / f"..{self._versions}"
        version.mkdir()
        (version / "ca-crl.pem").write_bytes(content)
        fresh = self._folder / "..data_tmp"
        fresh.symlink_to(version.name)
        os.replace(fresh, self._folder / "..data")
        if not self.path.is_symlink():
            self.path.symlink_to("..data/ca-crl.pem")


@asynccontextmanager
async def followed(path: Path, judge: Judge) -> AsyncIterator[CrlFile]:
    """A CrlFile that runs and has loaded what there was."""
    crl = CrlFile(path, judge)
    async with trio.open_nursery() as nursery:
        await nursery.start(crl.run)
        yield crl
        nursery.cancel_scope.cancel()


async def pass_time(seconds: float, until: int = 0, judge: Judge | None = None) -> None:
    await trio.sleep(seconds)
    if judge is not None:
        await reached(lambda: len(judge.lists) >= until)


async def reached(condition: Callable[[], bool]) -> None:
    """Waits by the real clock: files are read in a thread, for which the clock of the test does not wait."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await trio.sleep(LOOK)


async def test_the_file_is_loaded_before_the_agent_goes_on(tmp_path: Path) -> None:
    judge, mount = Judge(), Mount(tmp_path)
    mount.publish(b"first")
    async with followed(mount.path, judge) as crl:
        assert judge.lists == [b"first"]
        await reached(lambda: crl.usable)


async def test_a_swap_of_the_mounts_links_is_noticed_and_debounced(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    judge, mount = Judge(), Mount(tmp_path)
    mount.publish(b"first")
    async with followed(mount.path, judge):
        for content in (b"second", b"third!", b"fourth"):
            mount.publish(content)
            await pass_time(SETTLED / 2)
        assert judge.lists == [b"first"]
        await pass_time(2 * SETTLED, 2, judge)
        assert judge.lists == [b"first", b"fourth"]


async def test_a_missing_file_is_awaited(tmp_path: Path, autojump_clock: MockClock) -> None:
    judge, mount = Judge(), Mount(tmp_path)
    async with followed(mount.path, judge) as crl:
        await reached(lambda: crl.usable)
        assert judge.lists == []
        mount.publish(b"late")
        await pass_time(2 * SETTLED, 1, judge)
        assert judge.lists == [b"late"]


async def test_a_file_that_breaks_or_vanishes_changes_nothing(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    judge, mount = Judge(), Mount(tmp_path)
    mount.publish(b"first")
    async with followed(mount.path, judge) as crl:
        changes: list[Callable[[], None]] = [lambda: mount.publish(b"broken"), mount.path.unlink]
        for change in changes:
            caplog.clear()
            change()
            await pass_time(3 * SETTLED)
            await reached(lambda: "stay in force" in caplog.text)
            assert crl.usable
        assert judge.lists == [b"first"]
        mount.publish(b"repaired")
        await pass_time(2 * SETTLED, 2, judge)
        assert judge.lists == [b"first", b"repaired"]


async def test_a_file_that_was_never_usable_keeps_the_agent_unready(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    judge, mount = Judge(), Mount(tmp_path)
    mount.publish(b"broken")
    async with followed(mount.path, judge) as crl:
        assert not crl.usable
        mount.publish(b"repaired")
        await pass_time(2 * SETTLED)
        await reached(lambda: crl.usable)
        assert judge.lists == [b"repaired"]
