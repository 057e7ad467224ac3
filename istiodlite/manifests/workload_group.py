"""WorkloadGroup: plain values to objects, with the checks of Istio's validation."""

from istiodlite.manifests.fields import Field, shown
from istiodlite.manifests.networking import endpoint_of
from istiodlite.objects import Meta, WorkloadGroup

_METHODS = ("httpGet", "tcpSocket", "exec", "grpc")
_TIMES = (
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
)
_LARGEST = 2**31 - 1


def parse_workload_group(meta: Meta, body: Field) -> WorkloadGroup:
    spec = body["spec"].only("metadata", "template", "probe")
    if not spec["template"].present:
        spec["template"].fail("is missing; add what the entries of this group have in common ({} is enough)")
    made = spec["metadata"].only("labels", "annotations")
    if spec["probe"].present:
        _check_probe(spec["probe"])
    return WorkloadGroup(
        meta=meta,
        template=endpoint_of(spec["template"]),
        labels=made["labels"].labels(),
        annotations=made["annotations"].text_map(),
    )


def _check_probe(probe: Field) -> None:
    """Only checked: who probes is told by its own configuration, as with Istio."""
    probe.only(*_METHODS, *_TIMES)
    for name in _TIMES:
        probe[name].integer(0, _LARGEST, 0)
    given = [name for name in _METHODS if probe[name].present]
    if len(given) != 1:
        probe.fail(f"has {len(given) or 'no'} methods; give one of {', '.join(_METHODS)}")
    method = probe[given[0]]
    if given[0] == "exec":
        if not method.only("command")["command"].texts():
            method["command"].fail("is missing; name the program to run")
        return
    method["port"].port()
    if given[0] == "httpGet":
        method.only("path", "port", "host", "scheme", "httpHeaders")
        method["scheme"].choice(("", "HTTP", "HTTPS"), "")
        for header in method["httpHeaders"].items():
            _check_header(header["name"])


def _check_header(name: Field) -> None:
    text = name.text()
    if not text or not all(char.isascii() and (char.isalnum() or char in "-_") for char in text):
        name.fail(f"{shown(text)} is not a header name; use letters, digits, '-' and '_'")
