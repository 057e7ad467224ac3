"""What this machine must be able to do, found out before anything is made."""

import os
import shutil
import subprocess
import threading
from pathlib import Path

from daemonset.local import cgroups, linux
from daemonset.local.ruleset import ruleset

_PROGRAMS = {"nft": "nftables", "dnsmasq": "dnsmasq-base"}


class NotPossible(Exception):
    """Something is missing; the text says what to do."""


def require_root(command: str) -> None:
    """Raises NotPossible without root."""
    if os.geteuid() != 0:
        raise NotPossible(f"ambientctl {command} needs root: run it with sudo")


def check(*, with_mesh: bool) -> None:
    """Raises NotPossible, or cgroups.NoCgroup2."""
    cgroups.find()
    for program, package in _PROGRAMS.items():
        if shutil.which(program, path=_search_path()) is None:
            raise NotPossible(f"{program} is not installed: apt install {package}")
    if with_mesh and "\tbpf\n" not in Path("/proc/filesystems").read_text():
        raise NotPossible(
            "this kernel has no bpf file system: it needs CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF"
        )
    errors: list[str] = []
    trial = threading.Thread(target=_try_network, args=(errors,))
    trial.start()
    trial.join()
    if errors:
        raise NotPossible(errors[0])


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _try_network(errors: list[str]) -> None:
    """In a thread of its own, which takes its scratch namespace with it when it ends."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        linux.leave_for_new_netns()
    except OSError as error:
        errors.append(f"this kernel cannot make network namespaces ({error}): it needs CONFIG_NET_NS")
        return
    with IPRoute() as link:
        for kind, extra in (("veth", {"peer": "b"}), ("bridge", {})):
            try:
                link.link("add", ifname=f"a{kind}", kind=kind, **extra)
            except NetlinkError as error:
                errors.append(
                    f"this kernel cannot make {kind} links ({error}): it needs CONFIG_{kind.upper()}"
                )
                return
    done = subprocess.run(
        ["nft", "-f", "-"], input=ruleset((), "", ((), ())), text=True, capture_output=True, check=False
    )
    if done.returncode:
        why = done.stderr.strip().splitlines()[0] if done.stderr.strip() else "no reason given"
        errors.append(f"this kernel or nft cannot load the ClusterIP rules: {why}")
