"""Containers as the local mesh runs them: commands, environment, probes. Pure.

Follows Kubernetes' core/v1 Container: `$(NAME)` expansion in command, args and env values, precedence of
`env` over `envFrom`, and the fields of the downward API.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]
ConfigLookup = Callable[[str, str], Mapping[str, str] | None]
_REFERENCE = re.compile(r"\$(\$|\(([A-Za-z_.-][A-Za-z0-9_.-]*)\))")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class BadContainer(ValueError):
    """A container cannot be run; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Timing:
    """When to probe, in seconds, and how many answers in a row change the verdict."""

    initial_delay: float = 0
    period: float = 10
    timeout: float = 1
    successes: int = 1
    failures: int = 3


@dataclass(frozen=True, slots=True)
class Probe:
    """How to ask a container whether it is well."""

    kind: str  # "http" | "tcp" | "exec"
    timing: Timing = Timing()
    port: int = 0
    path: str = "/"
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A named port (the name may be empty)."""

    number: int
    name: str = ""
    protocol: str = "TCP"


@dataclass(frozen=True, slots=True)
class Container:
    """One container: `env` and `env_from` are still as in the manifest, `environment()` resolves them."""

    name: str
    command: tuple[str, ...]
    env: tuple[Json, ...] = ()
    env_from: tuple[Json, ...] = ()
    working_dir: str = ""
    ports: tuple[ContainerPort, ...] = ()
    readiness: Probe | None = None
    liveness: Probe | None = None
    startup: Probe | None = None
    sidecar: bool = False


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What the downward API can tell a container."""

    name: str
    namespace: str
    uid: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    node: str
    service_account: str
    pod_ips: tuple[str, ...]
    host_ips: tuple[str, ...]


def parse_containers(spec: Json) -> tuple[tuple[Container, ...], tuple[Container, ...]]:
    """(init containers, containers) of a pod's spec; BadContainer says what is wrong with it."""
    init = tuple(_container(c) for c in spec.get("initContainers") or ())
    main = tuple(_container(c) for c in spec.get("containers") or ())
    if not main:
        raise BadContainer("it has no containers")
    names = [c.name for c in (*init, *main)]
    if doubles := sorted({n for n in names if names.count(n) > 1}):
        raise BadContainer(f"two containers are called {doubles[0]!r}")
    return init, main


def _container(raw: Any) -> Container:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str) or not raw["name"]:
        raise BadContainer("every container needs a name")
    name = raw["name"]
    command = (*_words(name, raw, "command"), *_words(name, raw, "args"))
    if not raw.get("command"):
        raise BadContainer(
            f"container {name!r} has no command: images are not run here, so `command` has to name a program"
            " of this machine"
        )
    ports = tuple(_port(name, p) for p in raw.get("ports") or ())
    return Container(
        name=name,
        command=command,
        env=tuple(_checked_env(name, e) for e in raw.get("env") or ()),
        env_from=tuple(raw.get("envFrom") or ()),
        working_dir=str(raw.get("workingDir") or ""),
        ports=ports,
        readiness=_probe(name, raw, "readinessProbe", ports),
        liveness=_probe(name, raw, "livenessProbe", ports),
        startup=_probe(name, raw, "startupProbe", ports),
        sidecar=raw.get("restartPolicy") == "Always",
    )


def _words(container: str, raw: Json, field: str) -> tuple[str, ...]:
    words = raw.get(field) or []
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        raise BadContainer(f"container {container!r}: {field} has to be a list of strings (quote numbers)")
    return tuple(words)


def _checked_env(container: str, raw: Any) -> Json:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str) or "=" in raw["name"]:
        raise BadContainer(f"container {container!r}: every env entry needs a name without '='")
    if not isinstance(raw.get("value", ""), str):
        raise BadContainer(
            f"container {container!r}: value of env {raw['name']!r} has to be a string (quote it)"
        )
    return raw


def _port(container: str, raw: Any) -> ContainerPort:
    number = raw.get("containerPort") if isinstance(raw, Mapping) else None
    if not isinstance(number, int) or not 0 < number < 65536:
        raise BadContainer(f"container {container!r}: containerPort has to be a number from 1 to 65535")
    return ContainerPort(number, str(raw.get("name") or ""), str(raw.get("protocol") or "TCP"))


def _probe(container: str, raw: Json, field: str, ports: Sequence[ContainerPort]) -> Probe | None:
    probe = raw.get(field)
    if probe is None:
        return None
    timing = Timing(
        initial_delay=float(probe.get("initialDelaySeconds") or 0),
        period=float(probe.get("periodSeconds") or 10),
        timeout=float(probe.get("timeoutSeconds") or 1),
        successes=int(probe.get("successThreshold") or 1),
        failures=int(probe.get("failureThreshold") or 3),
    )
    where = f"container {container!r}: {field}"
    if "exec" in probe:
        return Probe("exec", timing, command=_words(container, probe["exec"], "command"))
    if "tcpSocket" in probe:
        port = _probe_port(where, probe["tcpSocket"], ports)
        return Probe("tcp", timing, port=port, host=str(probe["tcpSocket"].get("host") or ""))
    if "httpGet" in probe:
        get = probe["httpGet"]
        headers = tuple((str(h["name"]), str(h["value"])) for h in get.get("httpHeaders") or ())
        port = _probe_port(where, get, ports)
        path, host = str(get.get("path") or "/"), str(get.get("host") or "")
        return Probe("http", timing, port, path, host, headers)
    raise BadContainer(f"{where} has to be one of httpGet, tcpSocket, exec")


def _probe_port(where: str, raw: Json, ports: Sequence[ContainerPort]) -> int:
    port = raw.get("port")
    if isinstance(port, int) and 0 < port < 65536:
        return port
    named = [p.number for p in ports if p.name == port and p.name]
    if not named:
        raise BadContainer(
            f"{where}: port {port!r} is neither a number nor the name of a port of the container"
        )
    return named[0]


def expand(text: str, env: Mapping[str, str]) -> str:
    """Kubernetes' `$(NAME)` expansion; unknown names stay as they are, `$$(NAME)` gives `$(NAME)`."""

    def one(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return env.get(match[2], match[0])

    return _REFERENCE.sub(one, text)


def environment(
    container: Container, facts: PodFacts, config: ConfigLookup, secret: ConfigLookup
) -> dict[str, str]:
    """The container's variables. `config`/`secret` look up (namespace, name). BadContainer if one is missing."""
    env: dict[str, str] = {}
    for source in container.env_from:
        prefix = str(source.get("prefix") or "")
        data = _source(container, facts, source, "configMapRef", config, "ConfigMap")
        data = data or _source(container, facts, source, "secretRef", secret, "Secret")
        env.update({prefix + k: v for k, v in (data or {}).items()})
    for entry in container.env:
        value = _value(container, facts, entry, config, secret, env)
        if value is not None:
            env[entry["name"]] = value
    return env


def _source(
    container: Container, facts: PodFacts, source: Json, field: str, look: ConfigLookup, kind: str
) -> Mapping[str, str] | None:
    ref = source.get(field)
    if ref is None:
        return None
    data = look(facts.namespace, str(ref.get("name")))
    if data is None and not ref.get("optional"):
        raise BadContainer(
            f"container {container.name!r} needs {kind} {facts.namespace}/{ref.get('name')}, which no manifest declares"
        )
    return data


def _value(
    container: Container,
    facts: PodFacts,
    entry: Json,
    config: ConfigLookup,
    secret: ConfigLookup,
    env: Mapping[str, str],
) -> str | None:
    source = entry.get("valueFrom")
    if source is None:
        return expand(entry.get("value") or "", env)
    if "fieldRef" in source:
        return field_value(str(source["fieldRef"].get("fieldPath")), facts)
    for field, look, kind in (("configMapKeyRef", config, "ConfigMap"), ("secretKeyRef", secret, "Secret")):
        if field in source:
            data = _source(container, facts, source, field, look, kind)
            key = str(source[field].get("key"))
            if data is not None and key in data:
                return data[key]
            if source[field].get("optional"):
                return None
            raise BadContainer(
                f"container {container.name!r}: {kind} {facts.namespace}/{source[field].get('name')} has no key {key!r}"
            )
    raise BadContainer(
        f"container {container.name!r}: env {entry['name']!r} takes its value from {', '.join(source)};"
        " possible are fieldRef, configMapKeyRef, secretKeyRef"
    )


def field_value(path: str, facts: PodFacts) -> str:
    """Downward API: the value of a field path, e.g. `status.podIP`."""
    if match := _SUBSCRIPT.fullmatch(path):
        return (facts.labels if match[1] == "labels" else facts.annotations).get(match[2], "")
    values = {
        "metadata.name": facts.name,
        "metadata.namespace": facts.namespace,
        "metadata.uid": facts.uid,
        "spec.nodeName": facts.node,
        "spec.serviceAccountName": facts.service_account,
        "status.podIP": facts.pod_ips[0] if facts.pod_ips else "",
        "status.podIPs": ",".join(facts.pod_ips),
        "status.hostIP": facts.host_ips[0] if facts.host_ips else "",
        "status.hostIPs": ",".join(facts.host_ips),
    }
    if path not in values:
        raise BadContainer(f"fieldRef {path!r} is not known; possible are {', '.join(values)}")
    return values[path]


def secret_data(obj: Json) -> dict[str, str]:
    """Texts of a Secret: `stringData` over base64 `data`."""
    found: dict[str, str] = {}
    for key, value in (obj.get("data") or {}).items():
        try:
            found[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, TypeError, ValueError):
            raise BadContainer(f"data.{key} is not base64 of a text") from None
    found.update({k: str(v) for k, v in (obj.get("stringData") or {}).items()})
    return found
