"""The page of figures is rendered from the kept results: nobody typed one."""

import re
from pathlib import Path

from tests.bench.render import main

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_page_is_rendered_from_the_kept_results() -> None:
    page, kept = str(DOCS / "performance.md"), str(DOCS / "bench")
    assert main(["--from", kept, "--into", page, "--check"]) == 0


def test_each_table_of_the_page_has_its_kept_result() -> None:
    shown = re.findall(r"^<!-- bench:(\S+) -->$", (DOCS / "performance.md").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(path.stem for path in (DOCS / "bench").glob("*.json"))
