"""AdmissionReview (admission.k8s.io/v1) in, AdmissionReview out. Pure.

An object is refused for what the reader would refuse later, so that nobody finds out from a log. What the analyzer
finds is a warning: kubectl prints it, and the object is taken, as with Istio.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from istiodlite.analyze import Finding, Input, Severity, analyze
from istiodlite.kube.kinds import WatchedKind
from istiodlite.kube.reading import Garbled
from istiodlite.objects import KubeObject, ObjectKey
from istiodlite.registry import MeshConfig
from istiodlite.sources.kube.kinds import WATCHED
from istiodlite.sources.kube.reading import read

VERSION = "admission.k8s.io/v1"
# Kubernetes cuts warnings at 256 characters each and 4,096 together.
_WARNING, _WARNINGS = 256, 10
# A namespace larger than this is not gone through while somebody waits for kubectl.
MOST_NEIGHBOURS = 5_000
_SHOWN = (Severity.ERROR, Severity.WARNING)


class BadReview(ValueError):
    """Not an AdmissionReview request; one line that says what is wrong."""


def kind_of(body: Any) -> WatchedKind | None:
    """The kind of the object under review, None if it is none of ours. Raises BadReview."""
    kind = _request(body).get("kind")
    if not isinstance(kind, Mapping):
        raise BadReview("request.kind is missing")
    found = (kind.get("group"), kind.get("kind"))
    return next((one for one in WATCHED if (one.group, one.kind) == found), None)


def review(body: Any, objects: Mapping[ObjectKey, KubeObject], config: MeshConfig) -> dict[str, Any]:
    """The answer to one review, given the objects of the mesh as they are now. Raises BadReview."""
    request, kind = _request(body), kind_of(body)
    uid = request.get("uid")
    if not isinstance(uid, str) or not uid:
        raise BadReview("request.uid is missing")
    if kind is None or request.get("operation") not in ("CREATE", "UPDATE"):
        return _answer(uid)
    try:
        found = read(kind, _named(request))
    except Garbled as error:
        return _answer(uid, refusal=f"{error}; send a whole object")
    if found.object is None:
        problem = found.error
        text = f"{problem.field}: {problem.message}" if problem is not None else "cannot be used"
        return _answer(uid, refusal=text)
    return _answer(uid, warnings=_warnings(found.key, found.object, objects, config))


def _request(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, Mapping) or body.get("kind") != "AdmissionReview":
        raise BadReview("not an AdmissionReview")
    if body.get("apiVersion") != VERSION:
        raise BadReview(f"apiVersion is not {VERSION}")
    request = body.get("request")
    if not isinstance(request, Mapping):
        raise BadReview("request is missing")
    return request


def _named(request: Mapping[str, Any]) -> Any:
    """The object; one made with generateName has no name yet."""
    obj = request.get("object")
    metadata = obj.get("metadata") if isinstance(obj, Mapping) else None
    if not isinstance(obj, Mapping) or not isinstance(metadata, Mapping):
        return obj
    name = metadata.get("name") or f"{metadata.get('generateName') or ''}x"
    namespace = metadata.get("namespace") or request.get("namespace") or ""
    return {**obj, "metadata": {**metadata, "name": name, "namespace": namespace}}


def _warnings(
    key: ObjectKey, new: KubeObject, objects: Mapping[ObjectKey, KubeObject], config: MeshConfig
) -> list[str]:
    near = {"", key.namespace, config.root_namespace}
    inputs = [obj for other, obj in objects.items() if other.namespace in near and other != key]
    if len(inputs) > MOST_NEIGHBOURS:
        inputs = []
    found = analyze((Input(one) for one in (*inputs, new)), config)
    return [_line(one) for one in _of(key, found)][:_WARNINGS]


def _of(key: ObjectKey, found: Iterable[Finding]) -> Iterable[Finding]:
    return (one for one in found if one.object == key and one.severity in _SHOWN)


def _line(finding: Finding) -> str:
    text = f"{finding.code}: {finding.field + ': ' if finding.field else ''}{finding.message}"
    return text if len(text) <= _WARNING else f"{text[: _WARNING - 3]}..."


def _answer(uid: str, *, refusal: str = "", warnings: Iterable[str] = ()) -> dict[str, Any]:
    response: dict[str, Any] = {"uid": uid, "allowed": not refusal}
    if refusal:
        response["status"] = {
            "code": 400,
            "reason": "Invalid",
            "message": f"configuration is invalid: {refusal}",
        }
    if told := list(warnings):
        response["warnings"] = told
    return {"apiVersion": VERSION, "kind": "AdmissionReview", "response": response}
