"""Names, mounts, cgroups, restarts, logs, files."""

import json
from pathlib import Path

import pytest

from daemonset.local.cgroups import NoCgroup2, mount_point
from daemonset.local.folder import ObjectFolder, write_atomically
from daemonset.local.linux import mounts_below
from daemonset.local.names import (
    fabric_netns,
    is_mesh_name,
    node_netns,
    owns_netns,
    pod_link,
    pod_netns,
    port_link,
)
from daemonset.local.processes import LONGEST_PAUSE, STEADY_SECONDS, cut_log, restart_pause
from daemonset.local.render import PodStatus, file_name, pod_object, service_object
from daemonset.local.template import make_template


@pytest.mark.parametrize("name", ["demo", "a", "a-b", "x" * 24])
def test_mesh_names(name: str) -> None:
    assert is_mesh_name(name)


@pytest.mark.parametrize("name", ["", "-a", "A", "a/b", "a.b", "..", "x" * 25, "a\n"])
def test_bad_mesh_names(name: str) -> None:
    assert not is_mesh_name(name)


@pytest.mark.parametrize("other", ["a-n", "a-p", "a-fabric", "ab", "b"])
def test_a_mesh_owns_its_own_namespaces_only(other: str) -> None:
    theirs = [fabric_netns(other), node_netns(other, "n1"), pod_netns(other, "ns", "p")]
    assert not any(owns_netns("a", name) for name in theirs)
    assert all(owns_netns(other, name) for name in theirs)


def test_long_names_fit_a_file_name_and_stay_distinct() -> None:
    names = {pod_netns("demo", "n" * 63, "p" * 250 + str(i)) for i in range(3)}
    assert len(names) == 3
    assert all(len(name) <= 255 for name in names)


def test_links_fit_the_kernels_limit() -> None:
    assert len(pod_link("some-uid")) < 16
    assert len(port_link("n" * 40)) < 16


def test_cgroup2_is_found_where_it_is() -> None:
    hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    assert mount_point(hybrid) == Path("/sys/fs/cgroup/unified")
    with pytest.raises(NoCgroup2, match="mount -t cgroup2"):
        mount_point("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n")


def test_mounts_below_are_found_innermost_first() -> None:
    table = "a /run/x/a t rw 0 0\nb /run/x/a/b t rw 0 0\nc /run/xy t rw 0 0\nd /run/x t rw 0 0\n"
    assert mounts_below(Path("/run/x"), table) == [Path("/run/x/a/b"), Path("/run/x/a")]


def test_restart_pauses_grow_and_a_steady_life_forgives() -> None:
    assert [restart_pause(n, 1) for n in range(4)] == [0, 1, 2, 4]
    assert restart_pause(99, 1) == LONGEST_PAUSE
    assert restart_pause(99, STEADY_SECONDS) == 0


def test_long_log_is_cut_and_writers_go_on(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"x" * 100)
        assert not cut_log(log, 100)
        assert cut_log(log, 99)
        writer.write(b"more")
    assert log.read_bytes() == b"more"
    assert (tmp_path / "a.log.1").read_bytes() == b"x" * 100


def test_secret_files_are_never_readable_by_others(tmp_path: Path) -> None:
    write_atomically(tmp_path / "token", "t", mode=0o600)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def obj(name: str, value: int = 0) -> dict[str, object]:
    return {"kind": "Thing", "metadata": {"name": name, "namespace": "ns"}, "value": value}


def test_folder_writes_what_changed_and_removes_what_is_gone(tmp_path: Path) -> None:
    folder = ObjectFolder(tmp_path / "objects")
    a, b = obj("a"), obj("b")
    assert folder.sync({file_name(a): a, file_name(b): b}) == 2
    assert folder.sync({file_name(a): a, file_name(b): b}) == 0
    assert folder.sync({file_name(a): obj("a", 1)}) == 2
    assert [p.name for p in (tmp_path / "objects").iterdir()] == ["thing.ns.a.yaml"]
    assert json.loads((tmp_path / "objects" / "thing.ns.a.yaml").read_text())["value"] == 1


SPEC = {"containers": [{"name": "c", "command": ["x"]}]}


def test_pod_object_shows_status_and_owner() -> None:
    template = make_template("ns", "web-h-x", {"a": "b"}, {}, SPEC, "web", "h")
    status = PodStatus(
        "u", "2026-01-01T00:00:00Z", "n1", ("10.1.0.1", "fd01::1"), ("172.30.0.2",), "Running", True
    )
    made = pod_object(template, status)
    assert made["metadata"]["generateName"] == "web-h-"
    assert made["metadata"]["ownerReferences"][0]["name"] == "web-h"
    assert made["spec"]["nodeName"] == "n1"
    assert made["status"]["podIPs"] == [{"ip": "10.1.0.1"}, {"ip": "fd01::1"}]
    assert "deletionTimestamp" not in made["metadata"]


def test_redirection_annotation_is_the_meshs_not_the_users() -> None:
    key = "ambient.istio.io/redirection"
    template = make_template("ns", "p", {}, {key: "enabled"}, SPEC)
    status = PodStatus("u", "t", "n1", (), (), "Pending", False)
    assert key not in pod_object(template, status)["metadata"]["annotations"]
    told = PodStatus("u", "t", "n1", (), (), "Pending", False, redirection="enabled")
    assert pod_object(template, told)["metadata"]["annotations"] == {key: "enabled"}


def test_service_object_has_its_addresses() -> None:
    made = service_object(
        {"kind": "Service", "metadata": {}, "spec": {"ports": []}}, ("10.96.0.9", "fd00::9"), (4, 6)
    )
    assert made["spec"] == {
        "ports": [],
        "clusterIP": "10.96.0.9",
        "clusterIPs": ["10.96.0.9", "fd00::9"],
        "ipFamilies": ["IPv4", "IPv6"],
    }
