"""Starts one program where it belongs: `python -I -S launch.py PLAN PROGRAM [ARGUMENT...]`.

PLAN is JSON: {"cgroup": dir, "netns": path, "binds": {target: source}, "hostname": name, "cwd": dir}; every
field may be missing. The process joins the cgroup, enters the network namespace, takes mount and host
names of its own where it needs them, and becomes the program. Nothing else changes: no /sys is mounted,
as `ip netns exec` would do, so cgroups and bpffs stay visible.

Only the standard library's smallest modules are imported: this runs once for every container. Exit
status as a shell's: 127 no such program, 126 it cannot be run, 125 the place is gone.
"""

import ctypes
import json
import os
import signal
import sys

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET = 0x20000, 0x4000000, 0x40000000
MS_BIND, MS_REC, MS_SLAVE, MNT_DETACH = 4096, 16384, 1 << 19, 2
HELD = ("/run/netns/", "/run/ambientlite/")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _must(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def enter(plan: dict[str, object]) -> None:
    """Takes this process to the place that the plan describes."""
    libc = _libc()
    if cgroup := plan.get("cgroup"):
        with open(f"{cgroup}/cgroup.procs", "w") as procs:
            procs.write("0")
    if netns := plan.get("netns"):
        fd = os.open(str(netns), os.O_RDONLY)
        _must(libc.setns(fd, CLONE_NEWNET), f"enter {netns}")
        os.close(fd)
    binds = plan.get("binds")
    if isinstance(binds, dict) and binds:
        _must(libc.unshare(CLONE_NEWNS), "take a mount namespace")
        _must(libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None), "make mounts private")
        for target, source in binds.items():
            _bind(libc, os.fsencode(source), os.fsencode(target))
        _let_go(libc)
    if hostname := plan.get("hostname"):
        _must(libc.unshare(CLONE_NEWUTS), "take a host name of its own")
        name = str(hostname).encode()[:64]
        _must(libc.sethostname(name, len(name)), "set the host name")
    os.chdir(str(plan.get("cwd") or "/"))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and programs would inherit that


def _bind(libc: ctypes.CDLL, source: bytes, target: bytes) -> None:
    flags = ctypes.c_ulong(MS_BIND)
    _must(libc.mount(source, target, None, flags, None), f"put {source.decode()} on {target.decode()}")


def _let_go(libc: ctypes.CDLL) -> None:
    """Other pods' namespaces and agents' pins must not live on in this process's copy of the mounts."""
    with open("/proc/self/mounts") as table:
        points = [line.split(" ")[1] for line in table]
    for point in reversed(points):
        if point.startswith(HELD):
            libc.umount2(point.encode(), MNT_DETACH)


def main() -> None:
    """Becomes the program, or ends with a line on standard error."""
    program = sys.argv[2]
    try:
        enter(json.loads(sys.argv[1]))
    except OSError as error:
        print(f"{program}: {error.strerror or error}", file=sys.stderr)
        sys.exit(125)
    try:
        os.execvp(program, sys.argv[2:])  # noqa: S606
    except OSError as error:
        print(f"{program}: {error.strerror}", file=sys.stderr)
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    main()
