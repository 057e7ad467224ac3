"""Commands, environments and probes of containers."""

from collections.abc import Mapping

import pytest

from daemonset.local.containers import BadContainer, PodFacts, environment, expand, parse_containers

FACTS = PodFacts(
    "p", "ns", "uid-1", {"app": "web"}, {"note": "n"}, "node1", "sa", ("10.1.0.1", "fd01::1"), ("172.30.0.2",)
)


def env(*entries: Mapping[str, object], env_from: tuple[Mapping[str, object], ...] = ()) -> dict[str, str]:
    raw = {"name": "c", "command": ["x"], "env": list(entries), "envFrom": list(env_from)}
    _, (container,) = parse_containers({"containers": [raw]})
    maps = {("ns", "settings"): {"PORT": "80", "MODE": "fast"}}
    secrets = {("ns", "keys"): {"TOKEN": "t"}}
    return environment(container, FACTS, lambda *k: maps.get(k), lambda *k: secrets.get(k))


def test_values_refer_to_earlier_ones() -> None:
    assert (
        env({"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(NONE)-$$(A)"})["B"]
        == "1-$(NONE)-$(A)"
    )


def test_expansion_leaves_other_dollars_alone() -> None:
    assert expand("$HOME ${X} $(A) $", {"A": "a"}) == "$HOME ${X} a $"


def test_env_beats_env_from() -> None:
    found = env({"name": "MODE", "value": "slow"}, env_from=({"configMapRef": {"name": "settings"}},))
    assert found == {"PORT": "80", "MODE": "slow"}


def test_env_from_takes_a_prefix_and_secrets() -> None:
    assert env(env_from=({"prefix": "S_", "secretRef": {"name": "keys"}},)) == {"S_TOKEN": "t"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "p"),
        ("metadata.namespace", "ns"),
        ("metadata.uid", "uid-1"),
        ("metadata.labels['app']", "web"),
        ("metadata.annotations['note']", "n"),
        ("spec.nodeName", "node1"),
        ("spec.serviceAccountName", "sa"),
        ("status.podIP", "10.1.0.1"),
        ("status.podIPs", "10.1.0.1,fd01::1"),
        ("status.hostIP", "172.30.0.2"),
    ],
)
def test_downward_api(path: str, value: str) -> None:
    assert env({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": path}}}) == {"A": value}


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ({"configMapKeyRef": {"name": "settings", "key": "NONE"}}, "has no key 'NONE'"),
        ({"configMapKeyRef": {"name": "none", "key": "K"}}, "ConfigMap ns/none"),
        ({"secretKeyRef": {"name": "none", "key": "K"}}, "Secret ns/none"),
        ({"fieldRef": {"fieldPath": "spec.magic"}}, "spec.magic"),
        ({"resourceFieldRef": {}}, "possible are fieldRef"),
    ],
)
def test_values_that_cannot_be_had_are_refused(source: dict[str, object], error: str) -> None:
    with pytest.raises(BadContainer, match=error):
        env({"name": "A", "valueFrom": source})


def test_optional_values_may_be_missing() -> None:
    assert (
        env({"name": "A", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k", "optional": True}}})
        == {}
    )


def probe(**raw: object) -> dict[str, object]:
    ports = [{"name": "http", "containerPort": 8080}]
    return {"containers": [{"name": "c", "command": ["x"], "ports": ports, "readinessProbe": raw}]}


def test_probe_ports_may_be_named() -> None:
    _, (container,) = parse_containers(probe(httpGet={"port": "http", "path": "/ready"}, periodSeconds=2))
    assert container.readiness is not None
    assert (container.readiness.kind, container.readiness.port, container.readiness.path) == (
        "http",
        8080,
        "/ready",
    )
    assert (container.readiness.timing.period, container.readiness.timing.failures) == (2, 3)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        ({"tcpSocket": {"port": "none"}}, "port 'none'"),
        ({"grpc": {"port": 1}}, "one of httpGet, tcpSocket, exec"),
        ({"exec": {"command": "ls"}}, "list of strings"),
    ],
)
def test_bad_probes_are_refused(raw: dict[str, object], error: str) -> None:
    with pytest.raises(BadContainer, match=error):
        parse_containers(probe(**raw))


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        ({"name": "c", "command": ["x", 1]}, "quote numbers"),
        ({"name": "c", "command": ["x"], "env": [{"name": "A", "value": 1}]}, "quote it"),
        ({"name": "c", "command": ["x"], "ports": [{"containerPort": "80"}]}, "containerPort"),
        ({"name": "c", "args": ["x"]}, "`command`"),
        ({"command": ["x"]}, "name"),
    ],
)
def test_bad_containers_are_refused(raw: dict[str, object], error: str) -> None:
    with pytest.raises(BadContainer, match=error):
        parse_containers({"containers": [raw]})
