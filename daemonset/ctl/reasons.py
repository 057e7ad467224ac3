"""`ambientctl reasons`: what the slugs in logs, metrics and explanations mean."""

import argparse

from daemonset.ctl.errors import CommandFailed
from daemonset.ctl.table import table
from hbone.reasons import Reason

HEAD = """\
# Reasons

Why a connection was refused or ended: the closed list. The slug is in the access log (`reason=`), in the metric
`ambient_refusals_total{reason=...}` and in `ambientctl explain`; the flag is Istio's `response_flags` label; the status is what a
CONNECT request is answered with. Written by `make generate` from `hbone/reasons.py`.

| reason | flag | status | what happened |
| --- | --- | --- | --- |
"""


def run(options: argparse.Namespace) -> int:
    """Prints the list, or one entry of it."""
    known = list(Reason)
    if options.slug:
        known = [reason for reason in Reason if reason.value == options.slug]
        if not known:
            raise CommandFailed(f"there is no reason {options.slug!r}: ambientctl reasons lists them all")
    print(markdown() if options.markdown else _text(known))
    return 0


def markdown() -> str:
    """The list as the page `docs/reasons.md`, without the last line's end."""
    rows = [f"| `{r.value}` | `{r.response_flag}` | {r.http_status} | {r.text} |" for r in Reason]
    return HEAD + "\n".join(rows)


def _text(reasons: list[Reason]) -> str:
    rows = [(r.value, r.response_flag, r.http_status, r.text) for r in reasons]
    return table(("REASON", "FLAG", "STATUS", "WHAT HAPPENED"), rows)
