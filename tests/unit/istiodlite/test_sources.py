"""A folder over time: last good versions, replacement, removal; and when changes are acted upon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from istiodlite.server.debounce import Debounce
from istiodlite.sources.files import watch
from istiodlite.sources.folder import Batch, Folder

NAMESPACE = "apiVersion: v1\nkind: Namespace\nmetadata: {name: NAME, labels: {v: 'V'}}\n"


def namespace(name: str, version: str = "1") -> str:
    return NAMESPACE.replace("NAME", name).replace("V'", f"{version}'")


def put(folder: Path, file: str, text: str) -> None:
    """As the supervisor writes: whole, by rename."""
    temporary = folder / f".{file}.tmp"
    temporary.write_text(text)
    temporary.rename(folder / file)


def changed(batch: Batch) -> dict[str, str | None]:
    """Name -> label v, None for removed."""
    return {
        key.name: None if obj is None else obj.meta.labels.get("v", "") for key, obj in batch.changes.items()
    }


def test_the_first_scan_has_everything_and_the_next_nothing(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", namespace("a") + "---\n" + namespace("b"))
    folder = Folder(tmp_path)
    assert changed(folder.scan()) == {"a": "1", "b": "1"}
    assert changed(folder.scan()) == {}


def test_a_replaced_file_changes_what_differs_and_removes_what_is_gone(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", namespace("a") + "---\n" + namespace("b") + "---\n" + namespace("c"))
    folder = Folder(tmp_path)
    folder.scan()
    put(tmp_path, "a.yaml", namespace("a", "2") + "---\n" + namespace("b"))
    assert changed(folder.scan()) == {"a": "2", "c": None}
    (tmp_path / "a.yaml").unlink()
    assert changed(folder.scan()) == {"a": None, "b": None}


def test_an_error_in_one_object_keeps_its_last_good_version_and_lets_the_rest_change(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", namespace("a") + "---\n" + namespace("b"))
    folder = Folder(tmp_path)
    folder.scan()
    put(tmp_path, "a.yaml", namespace("a").replace("'1'", "1") + "---\n" + namespace("b", "2"))
    batch = folder.scan()
    assert changed(batch) == {"b": "2"}
    assert [str(error) for error in batch.errors] == [
        "a.yaml: document 1: Namespace a: metadata.labels.v: must be text; write 1 in quotes"
    ]
    put(tmp_path, "a.yaml", namespace("a", "3") + "---\n" + namespace("b", "2"))
    batch = folder.scan()
    assert changed(batch) == {"a": "3"}
    assert batch.errors == ()


def test_an_object_that_is_taken_out_beside_an_error_is_removed(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", namespace("a") + "---\n" + namespace("b"))
    folder = Folder(tmp_path)
    folder.scan()
    put(tmp_path, "a.yaml", namespace("a").replace("'1'", "1"))
    assert changed(folder.scan()) == {"b": None}


@pytest.mark.parametrize("broken", ["a: [1", "x: &x 1\ny: *x", "kind: Namespace\n", "# " + "x" * 3000])
def test_an_error_that_hides_which_object_it_is_keeps_all_of_the_file(tmp_path: Path, broken: str) -> None:
    put(tmp_path, "a.yaml", namespace("a") + "---\n" + namespace("b"))
    put(tmp_path, "z.yaml", namespace("z"))
    folder = Folder(tmp_path, size_limit=2000)
    folder.scan()
    put(tmp_path, "a.yaml", broken)
    put(tmp_path, "z.yaml", namespace("z", "2"))
    batch = folder.scan()
    assert changed(batch) == {"z": "2"}
    assert len(batch.errors) == 1


def test_errors_are_new_once(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", "kind: x")
    folder = Folder(tmp_path)
    first, second = folder.scan(), folder.scan()
    assert len(first.new_errors) == 1
    assert second.new_errors == ()
    assert first.errors == second.errors


def test_an_object_that_moves_to_another_file_is_not_removed(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", namespace("a"))
    folder = Folder(tmp_path)
    folder.scan()
    (tmp_path / "a.yaml").rename(tmp_path / "b.yaml")
    assert changed(folder.scan()) == {}


def test_of_two_files_with_one_object_the_first_by_name_counts_until_it_goes(tmp_path: Path) -> None:
    put(tmp_path, "b.yaml", namespace("x", "b"))
    folder = Folder(tmp_path)
    folder.scan()
    put(tmp_path, "a.yaml", namespace("x", "a"))
    batch = folder.scan()
    assert changed(batch) == {"x": "a"}
    assert "b.yaml: document 1: Namespace x: is also defined in a.yaml" in str(batch.errors[0])
    assert folder.scan().errors == batch.errors
    (tmp_path / "a.yaml").unlink()
    batch = folder.scan()
    assert changed(batch) == {"x": "b"}
    assert batch.errors == ()


def test_a_folder_that_cannot_be_listed_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    put(tmp_path / "o", "a.yaml", namespace("a"))
    folder = Folder(tmp_path / "o")
    folder.scan()
    (tmp_path / "o").rename(tmp_path / "away")
    batch = folder.scan()
    assert changed(batch) == {}
    assert "cannot be listed" in str(batch.errors[0])
    (tmp_path / "away").rename(tmp_path / "o")
    batch = folder.scan()
    assert (changed(batch), batch.errors) == ({}, ())


async def batches_of(folder: Folder, until: Callable[[Batch], bool], start: Callable[[], None]) -> float:
    """Seconds until a batch like that came, counted from `start`, which is run after the first batch."""
    with trio.fail_after(60):
        watching = watch(folder)
        await anext(watching)
        start()
        began = trio.current_time()
        while not until(await anext(watching)):
            pass
        await watching.aclose()
        return trio.current_time() - began


@pytest.mark.trio
async def test_a_change_is_seen_well_before_the_next_poll(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", namespace("a"))
    took = await batches_of(
        Folder(tmp_path),
        lambda batch: changed(batch) == {"b": "1"},
        lambda: put(tmp_path, "b.yaml", namespace("b")),
    )
    assert took < 1.0


@pytest.mark.trio
async def test_a_folder_that_is_put_in_place_of_the_old_one_is_watched(tmp_path: Path) -> None:
    old, new = tmp_path / "objects", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    put(old, "a.yaml", namespace("a"))
    put(new, "a.yaml", namespace("a", "2"))

    def swap() -> None:
        old.rename(tmp_path / "old")
        new.rename(old)

    await batches_of(Folder(old), lambda batch: changed(batch) == {"a": "2"}, swap)


def test_debounce_waits_for_quiet_but_never_longer_than_the_longest_time() -> None:
    debounce = Debounce(quiet=0.1, longest=1.0)
    assert debounce.due() is None
    debounce.note(5.0)
    assert debounce.due() == pytest.approx(5.1)
    debounce.note(5.05)
    assert debounce.due() == pytest.approx(5.15)
    debounce.note(5.95)
    assert debounce.due() == pytest.approx(6.0)
    assert debounce.take() == 5.0
    assert debounce.due() is None
    debounce.note(7.0)
    assert debounce.due() == pytest.approx(7.1)
