"""The engine's layers as docs/engine.md states them, and what its files take from each other."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
ENGINE = PROJECT / "hbone" / "engine"
PAGE = PROJECT / "docs" / "engine.md"

# (who calls, whom): why this call, which closes a circle, is kept.
KEPT_CALLS = {
    (
        "tunnel_write",
        "tunnel_end",
    ): "what cannot be sent ends the tunnel; ending it sends GOAWAY and close_notify",
}


class Use(NamedTuple):
    """One file takes something of another: a header, or a symbol."""

    user: str
    used: str
    what: str


def layers() -> dict[str, int]:
    """The layer of each file (a stem, or one name with its ending), 0 at the bottom."""
    section = PAGE.read_text().partition("## Files and layers")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \*\*\w+\*\* \|(.*?)\|", section, re.MULTILINE)
    assert rows, "docs/engine.md has no table of layers"
    named = [
        (name, level) for level, row in enumerate(reversed(rows)) for name in re.findall(r"`(.+?)`", row)
    ]
    found = dict(named)
    assert len(found) == len(named), "a file stands in two layers"
    return found


def layer_of(file: str, known: dict[str, int]) -> int:
    """`file` is a name with its ending."""
    return known[file] if file in known else known[file.rpartition(".")[0]]


def includes() -> list[Use]:
    """Every include of one of the engine's own headers."""
    return [
        Use(path.name, header, header)
        for path in sorted([*ENGINE.glob("*.c"), *ENGINE.glob("*.h")])
        for header in re.findall(r'^#include "(.+)"$', path.read_text(), re.MULTILINE)
    ]


def calls(objects: Iterable[str]) -> list[Use]:
    """Every symbol that one object takes from another."""
    defined: dict[str, str] = {}
    wanted: list[tuple[str, str]] = []
    for path in objects:
        source = f"{Path(path).stem}.c"
        listed = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
        for line in listed.splitlines():
            *_, kind, name = line.split()
            if kind in "TDRBV":
                defined[name] = source
            elif kind == "U":
                wanted.append((source, name))
    return [Use(user, defined[name], name) for user, name in wanted if name in defined]


def upward(uses: Iterable[Use]) -> list[Use]:
    """Those that go from a layer into a higher one."""
    known = layers()
    return [use for use in uses if layer_of(use.user, known) < layer_of(use.used, known)]


def circle(uses: Iterable[Use]) -> list[str]:
    """Files that use each other round, if any do; a source and its own header are one, but for those in two layers."""
    known = layers()
    graph: dict[str, set[str]] = {}
    for use in uses:
        user, used = (name if name in known else name.rpartition(".")[0] for name in (use.user, use.used))
        if user != used and (user, used) not in KEPT_CALLS:
            graph.setdefault(user, set()).add(used)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as found:
        return list(found.args[1])
    return []
