"""Names of pods' cgroups, of every driver and runtime, and of what is none."""

from __future__ import annotations

import uuid
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.enrol import podcgroups

UID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
UNDER = UID.replace("-", "_")
ID = "3fc1" * 16
PATHS = {
    "cgroupfs, guaranteed": f"/kubepods/pod{UID}/{ID}",
    "cgroupfs, burstable, containerd": f"/kubepods/burstable/pod{UID}/{ID}",
    "cgroupfs, best effort, CRI-O": f"/kubepods/besteffort/pod{UID}/crio-{ID}",
    "systemd, guaranteed, containerd": f"/kubepods.slice/kubepods-pod{UNDER}.slice/cri-containerd-{ID}.scope",
    "systemd, burstable, CRI-O": f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDER}.slice/crio-{ID}.scope",
    "systemd, best effort, dockershim": (
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDER}.slice/docker-{ID}.scope"
    ),
    "systemd below a cgroup root (kind)": (
        "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/"
        f"kubelet-kubepods-burstable-pod{UNDER}.slice/cri-containerd-{ID}.scope"
    ),
    "cgroupfs below a cgroup root (kind)": f"/kubelet/kubepods/burstable/pod{UID}/{ID}",
    "two drivers at once": f"/system.slice/containerd.service/kubepods-burstable-pod{UNDER}.slice:cri-containerd:{ID}",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_one_component_names_the_pod_and_the_one_before_is_its_parent(path: str) -> None:
    parts = PurePosixPath(path).parts
    (place,) = [number for number, part in enumerate(parts) if podcgroups.pod_uid(part) is not None]
    assert podcgroups.pod_uid(parts[place]) == UID
    if ":" not in path:
        assert podcgroups.is_parent(parts[place - 1])
        assert podcgroups.belongs_to_container(parts[place + 1])


@pytest.mark.parametrize(
    "name",
    [
        "kubepods.slice",
        "kubepods-burstable.slice",
        f"cri-containerd-{ID}.scope",
        ID,
        f"pod{UID}.slice",
        f"podman-{ID}.scope",
        f"pod{UID}x",
        f"machine-pod{UNDER}.slice",
        f"kubepods-pod{UNDER}.scope",
        "pod",
        f"pod{UID.upper()}",
        "podd41d8cd98f00b204e9800998ecf8427e",
        f"pod{UID}\n",
    ],
)
def test_what_is_no_pods_name(name: str) -> None:
    assert podcgroups.pod_uid(name) is None


def test_the_runtimes_monitor_is_not_the_pods() -> None:
    assert not podcgroups.belongs_to_container(f"crio-conmon-{ID}.scope")


@given(
    st.uuids(), st.sampled_from(["", "-burstable", "-besteffort"]), st.sampled_from(["", "kubelet-", "a-b-"])
)
def test_every_uid_comes_back_from_either_drivers_name(uid: uuid.UUID, qos: str, prefix: str) -> None:
    text = str(uid)
    slice_ = f"{prefix}kubepods{qos}-pod{text.replace('-', '_')}.slice"
    assert podcgroups.pod_uid(f"pod{text}") == podcgroups.pod_uid(slice_) == text


@given(st.text())
def test_no_name_breaks_it(name: str) -> None:
    found = podcgroups.pod_uid(name)
    assert found is None or found.replace("-", "_") in name.replace("-", "_")
    podcgroups.is_parent(name)


def test_hierarchies_are_looked_at_newest_first() -> None:
    table = (
        "sysfs /sys sysfs rw 0 0\n"
        "cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
        "cgroup /host/a\\040b cgroup rw,pids 0 0\n"
    )
    assert list(podcgroups.mounts(table)) == ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/host/a b"]
