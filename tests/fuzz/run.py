"""Build and run the libFuzzer targets: `python -m tests.fuzz.run --seconds 60 [TARGET ...]`.

Each `fuzz_NAME.c` is linked with the engine's C core under ASan and UBSan. New inputs are kept under
build/fuzz/NAME; inputs that once crashed belong into tests/fuzz/corpus/NAME and are replayed by
`test_corpus.py` for ever.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz import seeds

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
ENGINE = PROJECT / "hbone" / "engine"
BUILD = PROJECT / "build" / "fuzz"
SANITIZE = "address,undefined"
FLAGS = ["-std=gnu11", "-g", "-O1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-pthread"]


class NoCompiler(Exception):
    """clang with libFuzzer is not installed."""


def targets() -> list[str]:
    """Names of all targets."""
    return sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.c"))


def core_sources() -> list[Path]:
    """The C core without the CPython binding (module*.c)."""
    return [path for path in sorted(ENGINE.glob("*.c")) if not path.stem.startswith("module")]


def clang() -> str:
    """The compiler; NoCompiler says what to install."""
    found = shutil.which("clang")
    if found is None:
        raise NoCompiler("fuzzing needs clang and its runtime: apt install clang libclang-rt-dev")
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:2])} ... failed:\n{done.stderr[-4000:]}")


def _newest(paths: Iterable[Path]) -> float:
    return max(path.stat().st_mtime for path in paths)


def build(names: list[str]) -> dict[str, Path]:
    """Compile what changed; the programs by target."""
    compiler, objects = clang(), BUILD / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    headers = _newest([*ENGINE.glob("*.h"), *HERE.glob("*.h"), HERE / "run.py"])

    def compile_one(source: Path) -> Path:
        out = objects / f"{source.stem}.o"
        if not out.exists() or out.stat().st_mtime < max(headers, source.stat().st_mtime):
            include = [f"-I{ENGINE}", f"-I{HERE}"]
            sanitize = f"-fsanitize=fuzzer-no-link,{SANITIZE}"
            _run([compiler, *FLAGS, sanitize, *include, "-c", str(source), "-o", str(out)])
        return out

    mine = [HERE / f"fuzz_{name}.c" for name in names]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(compile_one, [*core_sources(), *mine]))
    core = made[: len(made) - len(mine)]
    programs = {}
    for name, own in zip(names, made[len(core) :], strict=True):
        program = BUILD / name / "target"
        program.parent.mkdir(parents=True, exist_ok=True)
        if not program.exists() or program.stat().st_mtime < _newest(made):
            libraries = [f"-Wl,--wrap={function}" for function in _directives(name, "wraps")]
            libraries += ["-lssl", "-lcrypto", "-lpthread"]
            own_core = [o for o in core if o.stem not in _directives(name, "replaces")]
            parts = [str(own), *map(str, own_core)]
            _run([compiler, *FLAGS, f"-fsanitize=fuzzer,{SANITIZE}", *parts, "-o", str(program), *libraries])
        programs[name] = program
    return programs


def _directives(name: str, word: str) -> list[str]:
    """From a target's first line, `/* replaces: A; wraps: B C */`: core sources it includes itself, and
    functions it stands in for."""
    first = (HERE / f"fuzz_{name}.c").read_text().splitlines()[0].removeprefix("/*").removesuffix("*/")
    parts = dict(part.strip().split(": ", 1) for part in first.split(";") if ": " in part)
    return parts.get(word, "").split() if word in parts else []


def corpus(name: str) -> list[Path]:
    """Folders with inputs: what the fuzzer found, generated seeds, regressions."""
    found, seeded = BUILD / name / "found", BUILD / name / "seeds"
    found.mkdir(parents=True, exist_ok=True)
    seeds.write(name, seeded)
    regressions = HERE / "corpus" / name
    return [found, seeded, *([regressions] if regressions.is_dir() else [])]


def fuzz(name: str, program: Path, seconds: int) -> bool:
    """Run one target for so long; True when nothing broke."""
    artifacts = BUILD / name / "crash-"
    options = [
        f"-max_total_time={seconds}",
        "-timeout=60",  # a hang; a machine that is busy elsewhere is none
        "-rss_limit_mb=1024",
        f"-artifact_prefix={artifacts}",
    ]
    done = subprocess.run(
        [str(program), *options, "-print_final_stats=1", "-verbosity=0", *map(str, corpus(name))],
        capture_output=True,
        text=True,
    )
    units = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
    print(f"{name}: {'ok' if done.returncode == 0 else 'BROKEN'}, {units[0] if units else '?'} inputs")
    if done.returncode:
        print(done.stderr[-6000:])
    return done.returncode == 0


def replay(name: str, program: Path) -> str:
    """Run all stored inputs once; "" or what broke."""
    folders = [str(folder) for folder in corpus(name)[1:]]
    done = subprocess.run([str(program), "-runs=0", *folders], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr[-4000:]


def main() -> int:
    """0 when no target broke, 1 when one did, 2 when there is no compiler."""
    parser = argparse.ArgumentParser(description="Fuzz the engine's C core.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("targets", nargs="*", default=targets())
    arguments = parser.parse_args()
    try:
        programs = build(arguments.targets)
    except NoCompiler as problem:
        print(problem, file=sys.stderr)
        return 2
    results = [fuzz(name, program, arguments.seconds) for name, program in programs.items()]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
