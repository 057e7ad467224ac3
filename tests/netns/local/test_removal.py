"""Nothing is left behind: after `down`, after a crash, beside other meshes."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daemonset.local import cgroups, cleanup
from daemonset.local.names import mesh_cgroup

from .conftest import NAMESPACE, Mesh, deployment, make_mesh, processes_of, service, sleeper, wait_until

pytestmark = pytest.mark.root


def start(mesh: Mesh) -> dict[str, object]:
    mesh.write("a.yaml", NAMESPACE, deployment("web", 2), service("web"), sleeper("client"))
    mesh.up()
    return mesh.status()


def kill_supervisor(mesh: Mesh) -> None:
    pid = mesh.status()["supervisor"]
    fd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    wait_until(
        "the supervisor dies",
        lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes(),
    )
    os.close(fd)


def traces(mesh: Mesh) -> list[str]:
    """Everything on this machine that carries the mesh's name."""
    found = [str(cleanup.look(mesh.name))] if cleanup.look(mesh.name) else []
    found += [m for m in Path("/proc/mounts").read_text().splitlines() if mesh.name in m]
    found += [n for n in os.listdir("/run/netns") if mesh.name in n]
    return found + processes_of(mesh)


def test_down_leaves_nothing(mesh: Mesh) -> None:
    start(mesh)
    before = machines_own()
    assert traces(mesh)
    mesh.down()
    assert traces(mesh) == []
    # Another process's tests may be adding or taking away links at this moment.
    wait_until("links and routes of the machine are as before", lambda: machines_own() == before)


def machines_own() -> tuple[set[str], str]:
    """Links and routes of the namespace that the mesh was started in."""
    return set(os.listdir("/sys/class/net")), Path("/proc/net/route").read_text()


def test_down_twice_is_fine_and_says_so(mesh: Mesh) -> None:
    start(mesh)
    mesh.down()
    done = mesh.ctl("down")
    assert (done.returncode, "nothing to remove" in done.stdout) == (0, True)


def test_down_after_the_supervisor_was_killed_leaves_nothing(mesh: Mesh) -> None:
    start(mesh)
    kill_supervisor(mesh)
    assert len(processes_of(mesh)) >= 3  # pods live on
    status = mesh.ctl("status")
    assert status.returncode == 1
    assert "supervisor was killed" in status.stderr
    mesh.down()
    assert traces(mesh) == []


def test_down_needs_no_state_file(mesh: Mesh) -> None:
    start(mesh)
    kill_supervisor(mesh)
    (Path("/run/ambientlite") / mesh.name / "state.json").unlink()
    (Path("/run/ambientlite") / mesh.name / "control.sock").unlink()
    mesh.down()
    assert traces(mesh) == []


def test_up_after_a_crash_cleans_up_first_and_says_so(mesh: Mesh) -> None:
    start(mesh)
    kill_supervisor(mesh)
    old = processes_of(mesh)
    output = mesh.up()
    assert f"removed what a killed run of mesh {mesh.name} left" in output
    assert old
    assert mesh.get("shop/client", "http://web/").startswith("web-")


def test_programs_started_by_exec_end_with_the_mesh(mesh: Mesh) -> None:
    start(mesh)
    mesh.exec("shop/client", "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &")
    mesh.down()
    assert traces(mesh) == []


def test_two_meshes_live_side_by_side_untouched(mesh: Mesh, second_mesh: Mesh) -> None:
    first, second = start(mesh), start(second_mesh)
    addresses = [{a for p in s["pods"].values() for a in p["addresses"]} for s in (first, second)]  # type: ignore[attr-defined]
    assert not addresses[0] & addresses[1]
    assert mesh.get("shop/client", "http://web/").startswith("web-")
    second_mesh.down()
    assert traces(second_mesh) == []
    assert mesh.status()["pods"] == first["pods"]
    assert mesh.get("shop/client", "http://web/").startswith("web-")


def test_mesh_whose_name_begins_with_another_ones_is_not_touched(mesh: Mesh, second_mesh: Mesh) -> None:
    second_mesh.name = f"{mesh.name}-p"
    start(mesh)
    try:
        before = start(second_mesh)
        mesh.down()
        assert second_mesh.status()["pods"] == before["pods"]
        assert second_mesh.get("shop/client", "http://web/").startswith("web-")
    finally:
        cleanup.clean(second_mesh.name)


@pytest.mark.parametrize("moment", ["_fabric/supervisor", "node1", "node2/dns", "node1/pods"])
def test_supervisor_killed_in_the_middle_of_up_is_cleaned_up(mesh: Mesh, moment: str) -> None:
    mesh.write("a.yaml", NAMESPACE, deployment("web", 4), service("web"))
    command = [
        sys.executable,
        "-m",
        "daemonset.ctl",
        "up",
        "--no-mesh",
        "--mesh",
        mesh.name,
        str(mesh.folder),
    ]
    group = mesh_cgroup(cgroups.find(), mesh.name)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        wait_until(moment, (group / moment).is_dir)
        # The cgroup is made just before its process moves in.
        members = group / "_fabric/supervisor/cgroup.procs"
        wait_until("the supervisor", lambda: bool(members.read_text().split()))
        for pid in members.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        _, errors = up.communicate(timeout=30)
    assert up.returncode == 1
    assert errors.count("\n") == 1
    mesh.down()
    assert traces(mesh) == []


def test_up_and_down_again_and_again_leaves_nothing(mesh: Mesh) -> None:
    mesh.write("a.yaml", NAMESPACE, deployment("web", 2), service("web"))
    for _ in range(5):
        mesh.up()
        mesh.down()
    assert traces(mesh) == []


def test_many_ups_and_downs_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    meshes = [make_mesh(tmp_path / str(i)) for i in range(4)]
    for one in meshes:
        one.write("a.yaml", NAMESPACE, sleeper("p"))
    try:
        with ThreadPoolExecutor(len(meshes)) as pool:
            list(pool.map(Mesh.up, meshes))
            indexes = {(Path("/run/ambientlite") / one.name / "index").read_text() for one in meshes}
            list(pool.map(Mesh.down, meshes))
        assert len(indexes) == len(meshes)
        assert [traces(one) for one in meshes] == [[], [], [], []]
    finally:
        for one in meshes:
            cleanup.clean(one.name)
