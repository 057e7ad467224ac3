"""Runs the demo: `python -m daemonset.demo [--keep]`; exit status 0 only if every check holds."""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from daemonset.demo.checks import ORDER, Checks
from daemonset.demo.mesh import Mesh, NotObserved

MANIFESTS = Path(__file__).parent / "mesh"
NEXT = """
The mesh is still up. Things to try:
  ambientctl status --mesh {name}
  ambientctl exec --mesh {name} shop/client -- curl -s http://web.shop/ | head
  ambientctl exec --mesh {name} shop/client -- iperf3 -c iperf.shop -t 3
  ambientctl explain --mesh {name} --from shop/guest --to web.shop:80
  ambientctl logs --mesh {name} ztunnel/n1
  edit {folder}, then: ambientctl up --mesh {name} {folder}
  ambientctl down --mesh {name}
(ambientctl is {ctl})"""


def run(mesh: Mesh) -> bool:
    """Brings the mesh up and makes every check, printing a row each; whether all hold."""
    began = time.monotonic()
    print(
        f"two nodes, {len(list(MANIFESTS.glob('*.yaml')))} manifests: ambientctl up {mesh.folder}", flush=True
    )
    mesh.apply()
    checks = Checks(mesh)
    print(f"up after {time.monotonic() - began:.1f} s\n", flush=True)
    failed = 0
    for number, check in enumerate(ORDER, 1):
        title = (check.__doc__ or check.__name__).strip()
        start = time.monotonic()
        try:
            mark, seen = "PASS", check(checks)
        except (NotObserved, ConnectionError, OSError) as error:
            mark, seen = "FAIL", str(error)
            failed += 1
        print(f"{mark} {number:2}. {title}  [{time.monotonic() - start:.1f} s]\n         {seen}", flush=True)
    print(
        f"\n{len(ORDER) - failed} of {len(ORDER)} checks hold, {time.monotonic() - began:.0f} s", flush=True
    )
    return not failed


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m daemonset.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the mesh up and say what to try next")
    parser.add_argument("--mesh", default="demo", help="name of the mesh (default: demo)")
    options = parser.parse_args(argv)
    if os.geteuid() != 0:
        print("demo: needs root (network namespaces, eBPF): sudo make demo", file=sys.stderr)
        return 1
    folder = Path(tempfile.mkdtemp(prefix=f"ambient-{options.mesh}-"))
    mesh = Mesh(options.mesh, folder)
    shutil.copytree(MANIFESTS, folder, dirs_exist_ok=True)
    held = False
    try:
        mesh.ctl("down", timeout=60)
        held = run(mesh)
    except NotObserved as error:
        print(f"demo: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("demo: interrupted, cleaning up", file=sys.stderr)
    finally:
        if options.keep:
            print(
                NEXT.format(name=options.mesh, folder=folder, ctl=Path(sys.executable).parent / "ambientctl")
            )
        else:
            mesh.ctl("down", timeout=60)
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
