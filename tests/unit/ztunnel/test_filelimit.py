"""The agent's limit of open descriptors, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_CHILD = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 2000))
from ztunnel.filelimit import raise_file_limit
if sys.argv[1] == "nobody":
    os.setuid(65534)
print(raise_file_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def _limits(who: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, who], capture_output=True, text=True, check=True, timeout=60
    )
    return [int(word) for word in done.stdout.split()]


_SYS_RESOURCE = 1 << 24  # capability.h


def _may_raise() -> bool:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return bool(
        int(next(line.split()[1] for line in lines if line.startswith("CapEff:")), 16) & _SYS_RESOURCE
    )


def test_who_may_raises_the_hard_limit_as_well() -> None:
    highest, soft, hard = _limits("itself")
    assert highest == soft == hard
    assert (hard > 2000) is _may_raise()  # root of a container may not


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes nobody")
def test_who_may_not_takes_what_the_hard_limit_gives() -> None:
    assert _limits("nobody") == [2000, 2000, 2000]
