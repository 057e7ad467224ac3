"""The core does no I/O, tells no time and draws no numbers: nothing in it could."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import ztunnel.decide
import ztunnel.state
import ztunnel.xds.delta

FORBIDDEN = {
    "trio",
    "socket",
    "ssl",
    "time",
    "random",
    "os",
    "grpc",
    "bcc",
    "pyroute2",
    "threading",
    "secrets",
}


def _modules() -> list[str]:
    names = ["hbone", "hbone.connect", "hbone.reasons", "hbone.spiffe", "ztunnel.xds.delta"]
    for package in (ztunnel.decide, ztunnel.state):
        names.append(package.__name__)
        names.extend(info.name for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."))
    return names


@pytest.mark.parametrize("name", _modules())
def test_a_module_of_the_core_imports_nothing_that_acts(name: str) -> None:
    path = importlib.import_module(name).__file__
    assert path is not None
    imported: set[str] = set()
    for node in ast.walk(ast.parse(Path(path).read_text())):
        if isinstance(node, ast.Import):
            imported.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").split(".")[0])
    assert not imported & FORBIDDEN


def test_a_fresh_interpreter_can_load_the_core_without_what_acts() -> None:
    """Shells and their libraries must not come along by a detour over the project's own packages."""
    script = (
        "import sys; baseline = set(sys.modules)\n"
        f"import {', '.join(_modules())}\n"
        "print('\\n'.join(sorted(set(sys.modules) - baseline)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[3],
    )
    loaded = set(done.stdout.split())
    assert not {name.split(".")[0] for name in loaded} & {
        "trio",
        "ssl",
        "grpc",
        "bcc",
        "pyroute2",
        "cryptography",
    }
    own = {
        name
        for name in loaded
        if name.split(".")[0] in ("hbone", "ztunnel", "ebpf", "waypoint", "istiodlite")
    }
    api = {name for name in own if name == "istiodlite" or name.startswith("istiodlite.api")}
    assert own - api == {*_modules(), "ztunnel", "ztunnel.xds"}
