"""Putting tables into a document."""

import json
from pathlib import Path

import pytest

from tests.bench.render import RenderError, insert, main
from tests.bench.results import Row, Sample, Samples, document

MACHINE = {"cpu": "c", "kernel": "k", "cores": 2, "python": "3", "openssl": "o", "versions": {}}
PAGE = "# Performance\n\n<!-- bench:hbone -->\nold\n<!-- /bench:hbone -->\n\nend\n"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    got = Samples()
    got.add("ours", Sample(12.0))
    got.add("none", Sample(24.0))
    made = document("hbone", MACHINE, {}, [(Row("bulk-up-1", "Gbit/s", "higher"), got)], ["ours", "none"], {})
    directory = tmp_path / "results"
    directory.mkdir()
    (directory / "hbone.json").write_text(json.dumps(made))
    return directory


def test_insert_replaces_only_what_is_between_the_markers() -> None:
    changed = insert(PAGE, "hbone", "new \\1 table\n")
    assert changed == PAGE.replace("old\n", "new \\1 table\n")


@pytest.mark.parametrize("page", ["no markers", PAGE + PAGE])
def test_insert_refuses_a_page_without_exactly_one_place(page: str) -> None:
    with pytest.raises(RenderError, match="exactly one pair"):
        insert(page, "hbone", "table")


def test_rendering_twice_changes_nothing_and_check_agrees(kept: Path, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(PAGE)
    arguments = ["--from", str(kept), "--into", str(page)]
    assert main([*arguments, "--check"]) == 1
    assert main([*arguments, "--keep", str(tmp_path / "docs")]) == 0
    first = page.read_text()
    assert "| bulk-up-1 | 12 Gbit/s | 0.50x |" in first
    assert first.startswith("# Performance\n")
    assert first.endswith("\n\nend\n")
    assert main(arguments) == 0
    assert page.read_text() == first
    assert main([*arguments, "--check"]) == 0
    assert main(["--from", str(tmp_path / "docs"), "--into", str(page), "--check"]) == 0


def test_a_result_that_was_tampered_with_is_refused(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = kept / "hbone.json"
    path.write_text(path.read_text().replace('"ours": 12.0', '"ours": 30.0'))
    assert main(["--from", str(kept)]) == 1
    assert "median is not that of its rounds" in capsys.readouterr().err


def test_no_results_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--from", str(tmp_path)]) == 1
    assert "run `make bench` first" in capsys.readouterr().err
