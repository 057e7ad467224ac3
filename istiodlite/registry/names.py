"""Names and telemetry identity of workloads."""

import re
from collections.abc import Mapping

from istiodlite.objects import OwnerRef, Pod
from istiodlite.registry.config import CANONICAL_NAME, CANONICAL_REVISION, WORKLOAD_NAME

# CronJob controllers name their Jobs NAME-<scheduled minute>.
_CRONJOB_RUN = re.compile(r"(?P<cronjob>.+)-[0-9]{8,10}\Z")


def workload_name(pod: Pod) -> str:
    """The name of what made the pod, as far as it shows.

    Label service.istio.io/workload-name first; owners count only for generated pods; else the pod's name.
    """
    labels = pod.meta.labels
    if WORKLOAD_NAME in labels:
        return labels[WORKLOAD_NAME]
    owner = next((owner for owner in pod.meta.owners if owner.controller), None)
    if not pod.meta.generate_name or owner is None:
        return pod.meta.name
    return _owner_name(owner, labels)


def _owner_name(owner: OwnerRef, labels: Mapping[str, str]) -> str:
    if owner.kind == "ReplicaSet":
        for label in ("pod-template-hash", "rollouts-pod-template-hash"):
            suffix = "-" + labels.get(label, "")
            if suffix != "-" and owner.name.endswith(suffix):
                return owner.name.removesuffix(suffix)
    elif owner.kind == "ReplicationController" and labels.get("deploymentconfig"):
        return labels["deploymentconfig"]
    elif owner.kind == "Job" and (run := _CRONJOB_RUN.match(owner.name)):
        return run["cronjob"]
    return owner.name


def canonical_name(labels: Mapping[str, str], workload: str) -> str:
    """Of the labels, the first of service.istio.io/canonical-name, app.kubernetes.io/name, app,
    which counts even when it is empty."""
    for label in (CANONICAL_NAME, "app.kubernetes.io/name", "app"):
        if label in labels:
            return labels[label]
    return workload


def canonical_revision(labels: Mapping[str, str]) -> str:
    for label in (CANONICAL_REVISION, "app.kubernetes.io/version", "version"):
        if label in labels:
            return labels[label]
    return "latest"
