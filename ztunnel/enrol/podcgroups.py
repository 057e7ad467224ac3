"""Names of pods' cgroups: which pod a directory belongs to. Pure.

The kubelet makes one cgroup a pod, named by its uid, below `kubepods` and (unless every container has equal requests
and limits) a class of service:

    cgroupfs   kubepods/burstable/pod0f1e...-...                      and in it    3fc1...
    systemd    kubepods.slice/kubepods-burstable.slice/
                 kubepods-burstable-pod0f1e..._....slice              and in it    cri-containerd-3fc1....scope

with more in front where `--cgroup-root` says so (`kubelet.slice/kubelet-kubepods.slice/...`). A kubelet with the
systemd driver over a containerd without names containers `kubepods-...-podUID.slice:cri-containerd:ID`, anywhere.
Source: kubelet/cm (cgroup_manager, qos containers), CRI-O's and containerd's naming of scopes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

__all__ = ["belongs_to_container", "is_parent", "mounts", "pod_uid"]

# systemd takes `-` for a level of slices, so uids are written with `_` there. (A static pod's is an MD5. Which one it is
# stands in an annotation, where anybody could name the cgroup of a pod that is not theirs: it is not read.)
_UID: Final = r"[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}"
_PLAIN: Final = re.compile(rf"pod({_UID})\Z")
_SLICE: Final = re.compile(rf"(?:[^/]*-)?kubepods(?:-burstable|-besteffort)?-pod({_UID})\.slice(?::[^/]*)?\Z")
_PARENT: Final = re.compile(r"(?:[^/]*-)?kubepods(?:-burstable|-besteffort)?(?:\.slice)?\Z")
_CLASSES: Final = frozenset({"burstable", "besteffort"})
_CGROUP2, _CGROUP1 = "cgroup2", "cgroup"


def pod_uid(name: str) -> str | None:
    """The pod whose cgroup has this name (one component of a path), as the API writes it; None: no pod's."""
    found = _PLAIN.match(name) or _SLICE.match(name)
    return found[1].replace("_", "-") if found is not None else None


def is_parent(name: str) -> bool:
    """Whether a cgroup of this name has pods right below it: `kubepods` or a class of service."""
    return name in _CLASSES or _PARENT.match(name) is not None


def belongs_to_container(name: str) -> bool:
    """Whether processes of a cgroup within a pod's are the pod's; CRI-O's monitor `conmon` is the node's."""
    return not name.startswith("crio-conmon-")


def mounts(table: str) -> Iterator[str]:
    """Where hierarchies are mounted that may have pods, from the text of /proc/mounts: cgroup2 first, then each of
    version 1 (of which a hybrid machine has several with the same names)."""
    rows = [line.split(" ") for line in table.splitlines()]
    for kind in (_CGROUP2, _CGROUP1):
        yield from (row[1].replace("\\040", " ") for row in rows if len(row) > 2 and row[2] == kind)
