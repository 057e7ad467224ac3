"""Another OpenSSL for the engine: `--libssl DIR`, or `--libssl wheel` for the one in a PyPI wheel.

Debian 12 has OpenSSL 3.0, whose AES-GCM does not use the wide vector instructions (VAES) that 3.1 and later, and the
libraries inside Envoy and ztunnel, use: a factor of three to four in encryption alone. The manylinux wheel of
psycopg2-binary carries a current libssl and libcrypto under names of its own; links give them the ordinary ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.bench.native import BuildError

LIBRARIES = ("libcrypto", "libssl")


def wheel_absent() -> str | None:
    """Why `--libssl wheel` cannot be, or None."""
    return None if importlib.util.find_spec("psycopg2") else "pip install psycopg2-binary first"


def _wheel_directory() -> Path:
    package = importlib.util.find_spec("psycopg2")
    if package is None or package.origin is None:
        raise BuildError("--libssl wheel: pip install psycopg2-binary first")
    return Path(package.origin).parents[1] / "psycopg2_binary.libs"


def directory(choice: str, build: Path) -> Path:
    """The directory for LD_LIBRARY_PATH; BuildError when there is no libssl.so.3 in it."""
    if choice != "wheel":
        found = Path(choice).resolve()
        if not (found / "libssl.so.3").exists():
            raise BuildError(f"--libssl: there is no libssl.so.3 in {found}")
        return found
    source = _wheel_directory()
    build.mkdir(parents=True, exist_ok=True)
    for name in LIBRARIES:
        carried = next(iter(source.glob(f"{name}-*.so.3")), None)
        if carried is None:
            raise BuildError(f"--libssl wheel: there is no {name} in {source}")
        # libssl asks for libcrypto by its name in the wheel, the engine by the ordinary one: both links, one file.
        for link in (build / f"{name}.so.3", build / carried.name):
            link.unlink(missing_ok=True)
            link.symlink_to(carried)
    return build


def libraries(options: argparse.Namespace) -> dict[str, str]:
    """What `--libssl` adds to the environment of our processes."""
    if not options.libssl:
        return {}
    return {"LD_LIBRARY_PATH": str(directory(options.libssl, options.out / "openssl"))}


def engine_openssl(environment: Mapping[str, str]) -> str:
    """The OpenSSL that our processes load, as it calls itself."""
    command = [sys.executable, "-c", "import ssl; print(ssl.OPENSSL_VERSION)"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    return done.stdout.strip()
