"""`python -m tests.bench.render`: puts the tables of kept results into a document, so that nobody types a figure.

The document says where by a pair of comment lines for each group:

    <!-- bench:hbone -->
    (replaced)
    <!-- /bench:hbone -->
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from tests.bench.results import problems
from tests.bench.tables import markdown


class RenderError(Exception):
    """Something a person has to put right; the text says what."""


def load_results(directory: Path) -> dict[str, dict[str, Any]]:
    """Group name -> result document of every *.json in `directory`; RenderError for one that is not a result."""
    results = {}
    for path in sorted(directory.glob("*.json")):
        result = json.loads(path.read_text())
        if wrong := problems(result):
            raise RenderError(f"{path}: {wrong[0]}")
        results[result["group"]] = result
    return results


def insert(document: str, group: str, table: str) -> str:
    """`document` with what stands between the group's markers replaced; RenderError without the markers."""
    start, end = f"<!-- bench:{group} -->", f"<!-- /bench:{group} -->"
    pattern = re.compile(re.escape(start) + r".*?" + re.escape(end), re.DOTALL)
    changed, count = pattern.subn(lambda _: f"{start}\n{table}{end}", document)
    if count != 1:
        raise RenderError(f"needs exactly one pair of lines {start} and {end}, has {count}")
    return changed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.render", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--from", dest="source", type=Path, default=Path("build/bench"), help="directory of results"
    )
    parser.add_argument(
        "--into", type=Path, help="document to change, e.g. docs/performance.md; default: stdout"
    )
    parser.add_argument("--keep", type=Path, help="also copy the results there, e.g. docs/bench")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; status 1 if the document is stale"
    )
    options = parser.parse_args(arguments)
    try:
        results = load_results(options.source)
        if not results:
            raise RenderError(f"no results in {options.source}: run `make bench` first")
        return _apply(results, options)
    except (RenderError, OSError, json.JSONDecodeError) as error:
        print(f"render: {error}", file=sys.stderr)
        return 1


def _apply(results: dict[str, dict[str, Any]], options: argparse.Namespace) -> int:
    if options.into is None:
        print("\n".join(f"## {group}\n\n{markdown(result)}" for group, result in results.items()))
        return 0
    before = options.into.read_text()
    after = before
    for group, result in results.items():
        after = insert(after, group, markdown(result))
    if options.check:
        if before != after:
            print(f"render: {options.into} is stale: run python -m tests.bench.render", file=sys.stderr)
        return int(before != after)
    options.into.write_text(after)
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        for group, result in results.items():
            (options.keep / f"{group}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
