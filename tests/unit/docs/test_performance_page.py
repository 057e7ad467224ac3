"""The page of figures is rendered from the kept results: nobody typed one."""

from pathlib import Path

from tests.bench.render import main

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_page_is_rendered_from_the_kept_results() -> None:
    page, kept = str(DOCS / "performance.md"), str(DOCS / "bench")
    assert main(["--from", kept, "--into", page, "--check"]) == 0
