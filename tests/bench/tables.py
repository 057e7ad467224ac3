"""Result documents as tables: plain text for the terminal, Markdown for the docs. Pure.

Three tables: how many times better (ratios first), CPU time for each unit, and the measured medians.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.bench.results import SUBJECT, ratio, rounded

Table = tuple[str, list[list[str]]]
BUSY = 0.05  # above this share of strangers' CPU time a result says so


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, thousands with commas, a dash for nothing."""
    if value is None:
        return "–"
    short = rounded(value, digits)
    assert short is not None
    if abs(short) >= 100:
        return f"{short:,.0f}"
    return f"{short:.3g}" if short else "0"


def times(value: float | None) -> str:
    """A ratio: `2.3x`; a dash for nothing."""
    return "–" if value is None else f"{value:.2f}x"


def cpu_cost(seconds: float | None, unit: str | None) -> str:
    """CPU time for one unit: seconds for a gigabyte, microseconds for a request or a connection."""
    if seconds is None or unit is None:
        return "–"
    return f"{number(seconds)} s" if unit == "GB" else f"{number(seconds * 1e6)} us"


def variant_names(result: Mapping[str, Any]) -> list[str]:
    """The variants that gave at least one figure, the subject first."""
    rows = result["rows"]
    names = dict.fromkeys(name for row in rows for name, value in row["median"].items() if value is not None)
    return sorted(names, key=lambda name: name != SUBJECT)


def _ratio_table(result: Mapping[str, Any], names: Sequence[str]) -> Table:
    others = [name for name in names if name != SUBJECT]
    lines = [["case", "ours", *(f"against {name}" for name in others)]]
    for row in result["rows"]:
        ours = row["median"].get(SUBJECT)
        if ours is not None:
            pairs = row.get("paired", {})
            ratios = (times(row["ratio"].get(name)) + _paired(pairs.get(name)) for name in others)
            lines.append([row["case"], f"{number(ours)} {row['unit']}", *ratios])
    return "How many times better than … (above 1: ours is better)", lines


def _paired(found: Mapping[str, Any] | None) -> str:
    return f" ({times(found['median'])} paired)" if found else ""


def _cpu_table(result: Mapping[str, Any], names: Sequence[str]) -> Table:
    lines = [["case", "of", *names]]
    for row in result["rows"]:
        costs, unit = row["cpu_s_per_unit"], row.get("cpu_unit")
        if unit is None:
            continue
        if all(costs.get(name) is None for name in names):
            continue
        cells = []
        for name in names:
            dearer = ratio(costs.get(SUBJECT), costs.get(name), "lower") if name != SUBJECT else None
            shown = cpu_cost(costs.get(name), unit)
            cells.append(shown if dearer is None else f"{shown} ({times(dearer)})")
        lines.append([row["case"], f"one {unit}", *cells])
    return "CPU time of all proxy processes together (in brackets: how many times what ours takes)", lines


def _median_table(result: Mapping[str, Any], names: Sequence[str]) -> Table:
    lines = [["case", "unit", *names]]
    for row in result["rows"]:
        latency = row.get("latency_us", {})
        beside = row.get("beside")

        def cell(
            name: str,
            row: Mapping[str, Any] = row,
            latency: Mapping[str, Any] = latency,
            beside: Mapping[str, Any] | None = beside,
        ) -> str:
            text = number(row["median"].get(name))
            if name in latency:
                text += f" ({number(latency[name]['p50'])}/{number(latency[name]['p99'])} us)"
            if beside and beside["median"].get(name) is not None:
                text += f" + {number(beside['median'][name])} {beside['unit']}"
            return text

        lines.append([row["case"], row["unit"], *(cell(name) for name in names)])
    return "Medians of the rounds (in brackets p50/p99 latency)", lines


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Title and lines (the first is the heading) of each table; tables without lines are left out."""
    names = variant_names(result)
    made = [_ratio_table(result, names), _cpu_table(result, names), _median_table(result, names)]
    return [(title, lines) for title, lines in made if len(lines) > 1]


def notes(result: Mapping[str, Any]) -> list[str]:
    """What a reader has to know besides the figures: the machine, what is absent or failed, strangers' load."""
    machine, method = result["machine"], result.get("method", {})
    said = [
        f"{machine.get('cpu')}, {machine.get('cores')} cores, Linux {machine.get('kernel')}, Python "
        f"{machine.get('python')}, {machine.get('openssl')}, {machine.get('date', 'no date')}",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in machine.get("versions", {}).items()),
    ]
    if method:
        said.append("Method: " + ", ".join(f"{k} {v}" for k, v in method.items()))
    if pairs := [
        (row["case"], name, found) for row in result["rows"] for name, found in row.get("paired", {}).items()
    ]:
        said.append(
            "Paired: the median of the ratios of slices that were measured one after the other, in a machine of changing "
            "speed the better figure; before it the ratio of the medians. Quartiles and number of pairs: "
            + ", ".join(
                f"{case} against {name} {times(found['low'])} to {times(found['high'])} ({found['pairs']})"
                for case, name, found in pairs
            )
        )
    said += [f"{name} is absent: {reason}" for name, reason in result["absent"].items()]
    failures: dict[tuple[str, str], list[str]] = {}
    for row in result["rows"]:
        for name, reasons in row.get("failed", {}).items():
            for reason in reasons:
                failures.setdefault((name, reason), []).append(row["case"])
    said += [f"{name} gave no figure for {', '.join(rows)}: {why}" for (name, why), rows in failures.items()]
    busy = [row["foreign_cpu"] for row in result["rows"] if row.get("foreign_cpu") is not None]
    if busy and max(busy) > BUSY:
        said.append(
            f"The machine was not quiet: other processes took up to {max(busy):.0%} of its CPU time during a row. "
            "Ratios of interleaved rounds bear that, absolute figures do not."
        )
    return said


def text(result: Mapping[str, Any]) -> str:
    """For the terminal."""

    def layout(lines: Sequence[Sequence[str]]) -> list[str]:
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        return [
            "  ".join(
                c.ljust(w) if i == 0 else c.rjust(w)
                for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]

    return _document(result, layout, "{}", "  {}")


def markdown(result: Mapping[str, Any]) -> str:
    """For the docs."""

    def layout(lines: Sequence[Sequence[str]]) -> list[str]:
        head, *body = lines
        rule = ["---", *("--:" for _ in head[1:])]
        return ["| " + " | ".join(line) + " |" for line in (head, rule, *body)]

    return _document(result, layout, "**{}**\n", "- {}")


def _document(
    result: Mapping[str, Any], layout: Callable[[Sequence[Sequence[str]]], list[str]], title: str, note: str
) -> str:
    parts = ["\n".join([title.format(head), *layout(lines)]) for head, lines in tables(result)]
    parts.append("\n".join(note.format(line) for line in notes(result)))
    return "\n\n".join(parts) + "\n"
