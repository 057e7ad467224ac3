"""The page for people: `python -m tests.unit.istiodlite.compatibility.page > docs/compatibility.md`."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from tests.unit.istiodlite.compatibility.rows import ROWS, Outcome, Row

PAGE = Path(__file__).resolve().parents[4] / "docs" / "compatibility.md"
_HEAD = """# Compatibility with Istio, field by field

Generated from `tests/unit/istiodlite/compatibility/rows.py`; every line is a test that sets the field and looks at what
the agents are told. Fields of Kubernetes objects that are not listed are not read.

| | |
| --- | --- |
| supported | what agents are told changes as it does with Istio |
| needs a waypoint | HTTP only: at L4 an ALLOW rule that has it is left out and so lets nobody in, as with Istio |
| refused | the object is refused (by the webhook, or with an error in the log), and the message names the field (or the one after "at") |
| ignored | nothing changes |

Beyond these fields: kinds of L7 (HTTPRoute, VirtualService, DestinationRule, RequestAuthentication, Telemetry, ...) are
not read yet.
"""


def render() -> str:
    """The page's text."""
    parts = [_HEAD]
    for kind, rows in groupby(ROWS, key=lambda row: row.kind):
        parts.append(f"\n## {kind}\n\n| field | example | |\n| --- | --- | --- |\n")
        parts.extend(_line(row) for row in rows)
    return "".join(parts)


def _line(row: Row) -> str:
    example = str(row.value).replace("|", "\\|")
    note = f" ({row.note})" if row.note else ""
    mark = f"**{row.outcome}**" if row.outcome is Outcome.REFUSED else str(row.outcome)
    at = f", at `{row.at}`" if row.at else ""
    return f"| `{row.field}` | `{example}` | {mark}{note}{at} |\n"


if __name__ == "__main__":
    print(render(), end="")
