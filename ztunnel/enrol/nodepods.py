"""Pods and namespaces as the API server has them: what enrolment reads of them. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from istiodlite.kube.kinds import WatchedKind
from istiodlite.kube.reading import Garbled, Reading, key_of
from ztunnel.enrol import membership, settings
from ztunnel.enrol.netchoice import IpAddress
from ztunnel.enrol.settings import CaptureSettings, Problem

__all__ = ["NAMESPACES", "NodePod", "pods_on", "read_namespace", "read_pod"]

NAMESPACES: Final = WatchedKind("Namespace", "", ("v1",), "namespaces", namespaced=False)
_ENDED: Final = frozenset({"Succeeded", "Failed"})


def pods_on(node: str) -> WatchedKind:
    """What to watch: the pods of one node."""
    return WatchedKind("Pod", "", ("v1",), "pods", selector=f"spec.nodeName={node}")


@dataclass(frozen=True, slots=True)
class NodePod:
    """One pod. `mode` is its own label; `may`: nothing about it forbids enrolment;
    `redirection` is what the annotation of that name says now; `problems` of annotations about capture."""

    uid: str
    name: str
    namespace: str
    service_account: str
    mode: str
    may: bool
    ended: bool
    deleting: bool
    addresses: tuple[IpAddress, ...]
    redirection: str
    settings: CaptureSettings
    problems: tuple[Problem, ...]

    def wanted(self, namespace_mode: str) -> bool:
        """Whether the pod is to be enrolled, while it has not ended."""
        mode = membership.MODE_LABEL
        return self.may and membership.asked_for(
            {mode: self.mode}, {}, {mode: namespace_mode}, host_network=False
        )

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def read_pod(kind: WatchedKind, body: Any) -> Reading[NodePod]:
    """Raises Garbled if it is no pod at all."""
    key = key_of(kind, body)
    meta, spec, status = body["metadata"], _map(body, "spec"), _map(body, "status")
    uid, annotations = meta.get("uid"), _map(meta, "annotations")
    if not isinstance(uid, str) or not uid:
        raise Garbled("a Pod without uid")
    asked, problems = settings.read(annotations)
    pod = NodePod(
        uid=uid,
        name=key.name,
        namespace=key.namespace,
        service_account=str(spec.get("serviceAccountName") or "default"),
        mode=str(_map(meta, "labels").get(membership.MODE_LABEL, "")),
        may=spec.get("hostNetwork") is not True and membership.SIDECAR_STATUS not in annotations,
        ended=str(status.get("phase")) in _ENDED,
        deleting=meta.get("deletionTimestamp") is not None,
        addresses=_addresses(status),
        redirection=str(annotations.get(membership.REDIRECTION, "")),
        settings=asked,
        problems=problems,
    )
    return Reading(key, pod)


def read_namespace(kind: WatchedKind, body: Any) -> Reading[str]:
    """A namespace's value of the label, empty for none. Raises Garbled."""
    key = key_of(kind, body)
    return Reading(key, str(_map(body["metadata"], "labels").get(membership.MODE_LABEL, "")))


def _map(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def _addresses(status: Mapping[str, Any]) -> tuple[IpAddress, ...]:
    listed = status.get("podIPs")
    texts = [one.get("ip") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    texts = texts or [status.get("podIP")]
    found: list[IpAddress] = []
    for text in texts:
        with contextlib.suppress(ValueError):  # then only what its namespace says counts
            found.append(ip_address(str(text or "")))
    return tuple(found)
