"""JSON of the API server to objects. Pure.

Only what answers depend on is kept: managedFields, foreign annotations and most of spec and status are
dropped at once, and texts that thousands of objects share (labels, node names) are held once.
"""

import sys
from collections.abc import Mapping
from typing import Any

from istiodlite.kube.kinds import WatchedKind
from istiodlite.kube.reading import Reading, Unusable, key_of
from istiodlite.manifests.errors import FieldError
from istiodlite.manifests.fields import Field, is_dns_name
from istiodlite.manifests.kinds import KINDS, parse_object
from istiodlite.objects import KubeObject

# Annotations that any conversion reads are Istio's; others are large or change often.
_ANNOTATIONS = "istio.io"
_METADATA = (
    "name",
    "namespace",
    "uid",
    "labels",
    "creationTimestamp",
    "deletionTimestamp",
    "generateName",
    "ownerReferences",
)


def read(kind: WatchedKind, body: Any) -> Reading[KubeObject]:
    """An object of a list or of an ADDED or MODIFIED event. Raises Garbled if it is no object at all."""
    key = key_of(kind, body)
    if not is_dns_name(key.name):
        # Some kinds of RBAC may be named so, none of ours; kept out of every key that is built from names.
        return Reading(key, None, Unusable("metadata.name", "is not a DNS name; rename it"))
    try:
        return Reading(key, parse_object(KINDS[kind.group, kind.kind], Field(_trimmed(body))))
    except FieldError as error:
        return Reading(key, None, Unusable(error.field, error.message))


def _trimmed(body: Mapping[str, Any]) -> dict[str, Any]:
    metadata = body["metadata"]
    kept = {name: metadata[name] for name in _METADATA if name in metadata}
    if isinstance(kept.get("labels"), dict):
        kept["labels"] = {_shared(key): _shared(value) for key, value in kept["labels"].items()}
    annotations = metadata.get("annotations")
    if isinstance(annotations, dict):
        kept["annotations"] = {_shared(key): value for key, value in annotations.items() if _is_read(key)}
    return {**body, "metadata": kept}


def _is_read(annotation: str) -> bool:
    domain = annotation.partition("/")[0]
    return domain == _ANNOTATIONS or domain.endswith(f".{_ANNOTATIONS}")


def _shared(value: Any) -> Any:
    return sys.intern(value) if type(value) is str else value
