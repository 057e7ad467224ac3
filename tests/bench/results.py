"""What a benchmark writes: samples in, one JSON document for each group out. Pure.

The document (also what `problems` checks):

    {"group": "hbone", "machine": {...}, "method": {...}, "absent": {"ztunnel": "ZTUNNEL_BIN is not set"},
     "rows": [{"case": "bulk-up-1", "unit": "Gbit/s", "better": "higher",
               "median": {"ours": 12.1, "none": 41.0, "ztunnel": null},
               "ratio": {"none": 0.30, "ztunnel": null},
               "cpu_s_per_unit": {"ours": 0.6, "none": null, "ztunnel": null}, "cpu_unit": "GB",
               "rounds": {"ours": [12.0, 12.1, 12.5], ...}}]}

`ratio[x]` is ours / x where higher is better and x / ours where lower is: above 1 is always better for us.
A row may also carry `latency_us`, `beside` (a second figure of the same runs), `foreign_cpu` (the share of the
machine's CPU time that went to processes outside the benchmark), `slices` (by variant, for each round what its figure
is the median of) with `paired` (median and quartiles of the ratios of slices that followed each other), `failed` (rounds that gave no figure,
with why) and `absent` (variants for which this row means nothing, with why).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

SUBJECT = "ours"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the result: `cpu_unit` names what `cpu_s_per_unit` is divided by; None where CPU time says nothing."""

    case: str
    unit: str
    better: Literal["higher", "lower"]
    cpu_unit: str | None = None
    beside: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure of one round. `cpu_s_per_unit` in seconds, latencies in microseconds, `foreign_cpu` 0..1.

    `slices`: what it is the median of, if variants were measured in turn in round `turn` (0: the first).
    """

    value: float
    cpu_s_per_unit: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    beside: float | None = None
    foreign_cpu: float | None = None
    slices: tuple[float, ...] = ()
    turn: int = 0


@dataclass(slots=True)
class Samples:
    """All figures of one row, by variant, in the order of the rounds."""

    good: dict[str, list[Sample]] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def add(self, variant: str, sample: Sample) -> None:
        self.good.setdefault(variant, []).append(sample)

    def fail(self, variant: str, reason: str) -> None:
        self.failed.setdefault(variant, []).append(reason)

    def copy(self, variant: str, other: Samples) -> None:
        """Take over what another row has of this variant."""
        if variant in other.good:
            self.good[variant] = list(other.good[variant])
        if variant in other.failed:
            self.failed[variant] = list(other.failed[variant])
        if variant in other.absent:
            self.absent[variant] = other.absent[variant]


def median(values: Iterable[float | None]) -> float | None:
    """The median of the values that are there; None if there are none."""
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def ratio(ours: float | None, other: float | None, better: str) -> float | None:
    """How many times better ours is: above 1 is better whichever way the unit points."""
    if ours is None or other is None:
        return None
    above, below = (ours, other) if better == "higher" else (other, ours)
    return above / below if below > 0 else None


def paired(ours: Iterable[Sample], other: Iterable[Sample], better: str) -> list[float]:
    """The ratio (as `ratio`) of each two slices that were measured one after the other, round after round."""
    theirs = {sample.turn: sample.slices for sample in other}
    pairs = [
        pair for sample in ours for pair in zip(sample.slices, theirs.get(sample.turn, ()), strict=False)
    ]
    return [found for mine, other in pairs if (found := ratio(mine, other, better)) is not None]


def quartiles(values: Sequence[float]) -> dict[str, float | int | None]:
    """Median, quartiles and number of at least one value."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    shown = {"median": middle, "low": low, "high": high}
    return {"pairs": len(values), **{name: rounded(value, 3) for name, value in shown.items()}}


def rounded(value: float | None, digits: int = 4) -> float | None:
    """`value` to `digits` significant digits, so that files can be read and compared."""
    if value is None or value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))


def row_document(row: Row, samples: Samples, variants: Sequence[str]) -> dict[str, Any]:
    """One entry of `rows`."""

    def medians(name: str) -> dict[str, float | None]:
        return {v: rounded(median(getattr(s, name) for s in samples.good.get(v, ()))) for v in variants}

    value = medians("value")
    document: dict[str, Any] = {
        "case": row.case,
        "unit": row.unit,
        "better": row.better,
        "median": value,
        "ratio": {
            v: rounded(ratio(value.get(SUBJECT), value[v], row.better), 3) for v in variants if v != SUBJECT
        },
        "cpu_s_per_unit": medians("cpu_s_per_unit"),
        "cpu_unit": row.cpu_unit,
        "rounds": {v: [rounded(s.value) for s in samples.good.get(v, ())] for v in variants},
        "foreign_cpu": rounded(median(s.foreign_cpu for ss in samples.good.values() for s in ss), 2),
    }
    p50, p99, beside = medians("p50_us"), medians("p99_us"), medians("beside")
    if any(p is not None for p in p50.values()):
        document["latency_us"] = {v: {"p50": p50[v], "p99": p99[v]} for v in variants if p50[v] is not None}
    if any(s.slices for ss in samples.good.values() for s in ss):
        document["slices"] = {
            v: [[rounded(one) for one in s.slices] for s in samples.good.get(v, ())] for v in variants
        }
        pairs = {
            v: paired(samples.good.get(SUBJECT, ()), samples.good.get(v, ()), row.better)
            for v in variants
            if v != SUBJECT
        }
        document["paired"] = {v: quartiles(found) for v, found in pairs.items() if found}
    if row.beside is not None:
        document["beside"] = {"unit": row.beside, "median": beside}
    if samples.absent:
        document["absent"] = dict(samples.absent)
    if samples.failed:
        document["failed"] = {v: list(reasons) for v, reasons in samples.failed.items()}
    return document


def document(
    group: str,
    machine: Mapping[str, Any],
    method: Mapping[str, Any],
    rows: Sequence[tuple[Row, Samples]],
    variants: Sequence[str],
    absent: Mapping[str, str],
) -> dict[str, Any]:
    """The whole result of a group; absent variants appear in every row as null."""
    names = [*variants, *(name for name in absent if name not in variants)]
    return {
        "group": group,
        "machine": dict(machine),
        "method": dict(method),
        "absent": dict(absent),
        "rows": [row_document(row, samples, names) for row, samples in rows],
    }


_ROW_KEYS = {"case", "unit", "better", "median", "ratio", "cpu_s_per_unit", "rounds"}


def _row_problems(row: Mapping[str, Any], absent: Mapping[str, str]) -> list[str]:
    case = row.get("case", "?")
    if missing := _ROW_KEYS - row.keys():
        return [f"{case}: lacks {', '.join(sorted(missing))}"]
    found = []
    if row["better"] not in ("higher", "lower"):
        found.append(f"{case}: better is {row['better']!r}")
    if set(row["ratio"]) != set(row["median"]) - {SUBJECT}:
        found.append(f"{case}: ratio and median name different variants")
    for variant, value in row["median"].items():
        explained = variant in {**absent, **row.get("failed", {}), **row.get("absent", {})}
        if value is None and not explained:
            found.append(f"{case}: {variant} is null without a reason")
        middle = median(row["rounds"].get(variant, ()))
        if value is not None and (middle is None or abs(middle - value) > abs(value) / 500):
            found.append(f"{case}: {variant}: the median is not that of its rounds")
    for variant, found_pairs in row.get("paired", {}).items():
        if {SUBJECT, variant} & row.get("failed", {}).keys():
            continue  # which slices belong to which round is not in the document
        middle = median(paired(_kept(row, SUBJECT), _kept(row, variant), row["better"]))
        if middle is None or abs(middle / found_pairs["median"] - 1) > 0.01:
            found.append(f"{case}: {variant}: the paired ratio is not that of its slices")
    for variant, value in row["ratio"].items():
        expected = ratio(row["median"].get(SUBJECT), row["median"][variant], row["better"])
        if (value is None) != (expected is None) or (
            value is not None and expected is not None and abs(value / expected - 1) > 0.02
        ):
            found.append(f"{case}: {variant}: the ratio does not follow from the medians")
    return found


def _kept(row: Mapping[str, Any], variant: str) -> list[Sample]:
    """The slices of a row, as samples, of rounds none of which failed."""
    return [Sample(0.0, slices=tuple(each), turn=turn) for turn, each in enumerate(row["slices"][variant])]


def problems(result: Mapping[str, Any]) -> list[str]:
    """What is wrong with a result document, one line each; empty if nothing is."""
    missing = {"group", "machine", "rows", "absent"} - result.keys()
    if missing:
        return [f"lacks {', '.join(sorted(missing))}"]
    found = [
        f"machine: lacks {k}"
        for k in ("cpu", "kernel", "cores", "python", "openssl", "versions")
        if k not in result["machine"]
    ]
    for row in result["rows"]:
        found += _row_problems(row, result["absent"])
    return found
