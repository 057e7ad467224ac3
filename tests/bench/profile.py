"""`python -m tests.bench.profile CASE VARIANT`: where one case's time goes, by perf or strace on the proxies.

Figures taken under a profiler are not results; only shares and counts are. strace -c is printed for each proxy with
calls for each unit (request, connection); perf prints its flat report by symbol.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench import rounds
from tests.bench.__main__ import ROOT, more_open_files, pinned_cpu
from tests.bench.cases import Case
from tests.bench.hbone import choose_cases, choose_variants, testbed
from tests.bench.native import BuildError
from tests.bench.process import Process
from tests.bench.testbed import Testbed, session
from tests.bench.variants import Variant


@contextmanager
def attached(tool: str, process: Process, output: Path) -> Iterator[None]:
    """The profiler on one process for as long as the block runs."""
    command = {
        "strace": ["strace", "-f", "-c", "-o", str(output), "-p", str(process.pid)],
        "perf": ["perf", "record", "-q", "-g", "-F", "997", "-o", str(output), "-p", str(process.pid)],
    }[tool]
    profiler = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)  # neither tool says when it is attached
    try:
        yield
    finally:
        profiler.send_signal(signal.SIGINT)
        profiler.wait()


def calls_per_unit(summary: str, units: float) -> list[str]:
    """`strace -c` as lines of calls for each unit, most frequent first."""
    counts = []
    for line in summary.splitlines():
        if found := re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", line):
            counts.append((int(found[1]), found[2]))
    return [
        f"  {count / units:8.3f} {name}" for count, name in sorted(counts, reverse=True) if name != "total"
    ]


def report(tool: str, output: Path, units: float) -> str:
    """What the profiler saw."""
    if tool == "strace":
        return "\n".join(calls_per_unit(output.read_text(), units)[:15])
    command = ["perf", "report", "-i", str(output), "--no-children", "--stdio", "-g", "none"]
    command += ["--percent-limit", "0.7", "--sort", "comm,dso,symbol"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return "\n".join(line for line in lines if line.strip() and not line.startswith("#"))


def profile(bed: Testbed, case: Case, variant: Variant, plan: rounds.Plan, tool: str) -> None:
    """One run of the case for each proxy (a process has one profiler at a time)."""
    with session(bed, plan.pin if case.pinned else None) as current:
        variant.start(current, case)
        current.load("rr", "--conns", "1", "--size", "64", "--seconds", "0.2")
        for process in current.proxies:
            output = bed.logs / f"{tool}-{case.name}-{process.name}"
            with attached(tool, process, output):
                got = case.measure(current, plan.seconds)
            row, sample = case.rows[0], got[case.rows[0].case]
            units = max(1.0, sample.value * plan.seconds)
            print(f"== {process.name}: {rounds.describe(row, sample)} under {tool} ({output})")
            print(report(tool, output, units))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profile", description=__doc__)
    parser.add_argument("case", help="a row of group hbone")
    parser.add_argument("variant")
    parser.add_argument("--tool", choices=("perf", "strace"), default="perf")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--pin", default="auto", help="as for tests.bench")
    parser.add_argument("--libssl", help="as for tests.bench")
    options = parser.parse_args()
    options.out = ROOT / "build" / "bench"
    plan = rounds.Plan(1, options.seconds, pinned_cpu(options.pin, os.cpu_count() or 1))
    more_open_files()
    try:
        (case,), (variants, absent) = choose_cases(options.case), choose_variants(options.variant)
        if absent:
            raise BuildError(f"{options.variant}: {absent[options.variant]}")
        with tempfile.TemporaryDirectory(prefix="albench-") as work, testbed(options, Path(work)) as bed:
            profile(bed, case, variants[options.variant], plan, options.tool)
    except BuildError as error:
        print(f"profile: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
