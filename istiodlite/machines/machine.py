"""What a machine says of itself, and the WorkloadEntry that it becomes. Pure. (Istio: WorkloadGroup, auto-registration)"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.json_format import MessageToDict

from istiodlite.api import discovery_pb2
from istiodlite.ca.caller import Caller
from istiodlite.objects import Endpoint, ObjectKey, WorkloadEntry, WorkloadGroup
from istiodlite.registry.config import REGISTRATION_GROUP, TUNNEL

HEALTH_TYPE = "type.googleapis.com/istio.v1.HealthInformation"
CONTROLLER = "istio.io/workloadController"
CONNECTED = "istio.io/connectedAt"
DISCONNECTED = "istio.io/disconnectedAt"
HEALTH_CHECKED = "proxy.istio.io/health-checks-enabled"
GRACE = 10.0
"""Seconds after which the entry of a machine that went away is removed (PILOT_WORKLOAD_ENTRY_GRACE_PERIOD)."""
_GROUP_VERSION = "networking.istio.io/v1"
_LONGEST_NAME = 253
# Istio's agents put it among the labels of a node; "/" is none of a label's characters.
_LOCALITY_LABEL = "istio-locality"


@dataclass(frozen=True, slots=True)
class Machine:
    """`group` names the WorkloadGroup to be entered by, else `entry` the WorkloadEntry it is."""

    namespace: str
    address: str
    group: str = ""
    entry: str = ""
    network: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    speaks_hbone: bool = False
    probed: bool = False

    @property
    def key(self) -> ObjectKey:
        """Of its WorkloadEntry: GROUP-ADDRESS, with the network if it said one."""
        if not self.group:
            return ObjectKey("WorkloadEntry", self.namespace, self.entry)
        parts = [self.group, self.address.replace(":", "-"), *([self.network] if self.network else [])]
        return ObjectKey("WorkloadEntry", self.namespace, "-".join(parts)[-_LONGEST_NAME:])


def machine_of(node: discovery_pb2.Node, caller: Caller) -> Machine | None:
    """None for a node that asks for nothing. node.id is TYPE~IP~NAME.NAMESPACE~DOMAIN."""
    said = MessageToDict(node.metadata)
    group, entry = str(said.get("AUTO_REGISTER_GROUP", "")), str(said.get("WORKLOAD_ENTRY", ""))
    if not group and not entry:
        return None
    kind, address, *_ = node.id.split("~")
    labels, config = said.get("LABELS"), said.get("PROXY_CONFIG")
    return Machine(
        namespace=caller.namespace,
        address=address,
        group=group,
        entry=entry,
        network=str(said.get("NETWORK", "")),
        labels={str(name): str(value) for name, value in labels.items()} if isinstance(labels, dict) else {},
        speaks_hbone=kind in ("ztunnel", "waypoint") or str(said.get("ENABLE_HBONE", "")).lower() == "true",
        probed=isinstance(config, dict) and bool(config.get("readinessProbe")),
    )


def refusal(endpoint: Endpoint, namespace: str, caller: Caller) -> str:
    """Empty if the caller may be this workload, else why not: its namespace, and its account where one is named."""
    if caller.namespace != namespace:
        return f"the entry is of namespace {namespace}, the token of {caller.namespace}"
    if endpoint.service_account and caller.service_account != endpoint.service_account:
        return (
            f"the entry's service account is {endpoint.service_account}, the token's {caller.service_account}"
        )
    return ""


def entry_of(machine: Machine, group: WorkloadGroup, controller: str, now: str) -> dict[str, Any]:
    """The WorkloadEntry as it is sent to the API server. Labels: the machine's own over the group's over the
    template's."""
    template = group.template
    labels = {**template.labels, **group.labels, **machine.labels}
    labels.pop(_LOCALITY_LABEL, None)
    if machine.speaks_hbone:
        labels.setdefault(TUNNEL, "http")
    annotations = {REGISTRATION_GROUP: group.meta.name, **group.annotations}
    if machine.probed:
        annotations[HEALTH_CHECKED] = "true"
    owner = {
        "apiVersion": _GROUP_VERSION,
        "kind": "WorkloadGroup",
        "name": group.meta.name,
        "uid": group.meta.uid,
        "controller": True,
    }
    spec: dict[str, Any] = {
        "address": machine.address,
        "ports": dict(template.ports),
        "labels": labels,
        "network": machine.network or template.network,
        "locality": template.locality,
        "weight": template.weight,
        "serviceAccount": template.service_account,
    }
    return {
        "apiVersion": _GROUP_VERSION,
        "kind": "WorkloadEntry",
        "metadata": {
            "name": machine.key.name,
            "namespace": machine.namespace,
            "labels": labels,
            "annotations": {**annotations, CONTROLLER: controller, CONNECTED: now},
            "ownerReferences": [owner],
        },
        "spec": {name: value for name, value in spec.items() if value},
    }


def connected(controller: str, now: str) -> dict[str, str | None]:
    """Annotations (None: removed) of an entry whose machine has a stream."""
    return {CONTROLLER: controller, CONNECTED: now, DISCONNECTED: None}


def gone(now: str) -> dict[str, str | None]:
    """Of one whose machine has none any more."""
    return {CONNECTED: None, DISCONNECTED: now}


def is_registered(entry: WorkloadEntry) -> bool:
    """Made for a machine, so it goes with it."""
    return bool(entry.meta.annotations.get(REGISTRATION_GROUP)) and CONTROLLER in entry.meta.annotations


def is_checked(entry: WorkloadEntry) -> bool:
    """Written by hand, with health reports of its machine."""
    return entry.meta.annotations.get(HEALTH_CHECKED) == "true"


def is_over(entry: WorkloadEntry, now: datetime.datetime, grace: float = GRACE) -> bool:
    """Its machine is away for longer than the grace period (seconds)."""
    annotations = entry.meta.annotations
    if CONNECTED in annotations or DISCONNECTED not in annotations:
        return False
    try:
        since = datetime.datetime.fromisoformat(annotations[DISCONNECTED])
    except ValueError:
        return True
    return since.tzinfo is None or (now - since).total_seconds() >= grace
