"""Names of everything a mesh makes. Pure. From the names alone `cleanup` finds what belongs to a mesh."""

import hashlib
import re
from pathlib import Path, PurePath

RUN_ROOT = Path("/run/ambientlite")
NETNS_DIR = Path("/run/netns")
CGROUP_ROOT = "ambientlite"
FABRIC_CGROUP = "_fabric"  # no node can be called so
UPLINK = "eth0"
BRIDGE = "br0"
DEFAULT_MESH = "demo"

_MESH_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_FILE_NAME_LIMIT = 200


def is_mesh_name(text: str) -> bool:
    """Whether `text` can name a mesh: lower-case letters, digits and dashes, at most 24."""
    return _MESH_NAME.fullmatch(text) is not None


def is_dns_label(text: str) -> bool:
    """RFC 1123 label: names of namespaces, nodes and services."""
    return _DNS_LABEL.fullmatch(text) is not None


def is_dns_name(text: str) -> bool:
    """RFC 1123 subdomain: names of all other objects."""
    return len(text) <= 253 and _DNS_NAME.fullmatch(text) is not None


def digest(text: str, length: int) -> str:
    """Hexadecimal digest of `text`, `length` characters."""
    return hashlib.blake2s(text.encode()).hexdigest()[:length]


def _shortened(name: str) -> str:
    if len(name) <= _FILE_NAME_LIMIT:
        return name
    return f"{name[: _FILE_NAME_LIMIT - 17]}-{digest(name, 16)}"


def fabric_netns(mesh: str) -> str:
    """The namespace that holds the bridge between the nodes, and the control plane."""
    return f"al-{mesh}-fabric"


def node_netns(mesh: str, node: str) -> str:
    """A node's network namespace."""
    return _shortened(f"al-{mesh}-n.{node}")


def pod_netns(mesh: str, namespace: str, pod: str) -> str:
    """A pod's network namespace."""
    return _shortened(f"al-{mesh}-p.{namespace}.{pod}")


def owns_netns(mesh: str, netns: str) -> bool:
    """Whether the mesh made the namespace called `netns`. Another mesh's never match (no dots in names)."""
    prefix = f"al-{mesh}-"
    return netns == fabric_netns(mesh) or netns.startswith((f"{prefix}n.", f"{prefix}p."))


def pod_link(uid: str) -> str:
    """The node's end of a pod's link; from the uid, so that a pod's successor never meets its name."""
    return f"veth{digest(uid, 10)}"


def port_link(node: str) -> str:
    """The fabric's end of a node's uplink."""
    return f"port{digest(node, 10)}"


def run_dir(mesh: str) -> Path:
    """Where the mesh keeps its sockets, files and logs."""
    return RUN_ROOT / mesh


def mesh_cgroup(mount: PurePath, mesh: str) -> Path:
    """The mesh's cgroup2 subtree."""
    return Path(mount) / CGROUP_ROOT / mesh


def node_cgroup(mount: PurePath, mesh: str, node: str) -> Path:
    """A node's subtree: where its agent attaches."""
    return mesh_cgroup(mount, mesh) / node


def pod_cgroup(mount: PurePath, mesh: str, node: str, namespace: str, pod: str) -> Path:
    """A pod's subtree; containers are its children."""
    return node_cgroup(mount, mesh, node) / "pods" / _shortened(f"{namespace}.{pod}")
