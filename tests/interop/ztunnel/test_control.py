"""Istio's ztunnel as a client of our control plane and of our supervisor's enrolment, beside our agent."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any

import pytest

from daemonset.demo.mesh import wait_for
from tests.interop.ztunnel.mesh import OURS, THEIRS, MixedMesh, allow, pod

pytestmark = [pytest.mark.root, pytest.mark.ztunnel]

SHOP = "spiffe://cluster.local/ns/shop/sa/"
KEYS = {"workloads": ("uid",), "services": ("namespace", "hostname"), "policies": ("namespace", "name")}


def test_both_are_ready(mesh: MixedMesh) -> None:
    assert [mesh.ready(node) for node in (OURS, THEIRS)] == ["200", "200"]


def settled(client: dict[str, Any]) -> bool:
    """Everything sent has been answered."""
    kinds = client["types"].values()
    return len(kinds) == 2 and all(k["acks"] and not k["unacknowledged"] for k in kinds)


def test_everything_is_acknowledged_and_nothing_refused(mesh: MixedMesh) -> None:
    clients = wait_for("acks", lambda: c if all(map(settled, (c := mesh.clients()).values())) else None)
    assert set(clients) == {OURS, THEIRS}
    for client in clients.values():
        for kind in client["types"].values():
            assert (kind["wildcard"], kind["nacks"], kind["lastNack"]) == (True, 0, "")


def test_certificates_of_its_pods_come_by_impersonation(mesh: MixedMesh) -> None:
    held = {c["identity"]: c for c in mesh.dump(THEIRS)["certificates"]}
    assert set(held) == {SHOP + name for name in ("rust-server", "rust-client", "rust-guest")}
    assert {c["state"] for c in held.values()} == {"Available"}
    ours = mesh.dump(OURS)["certificates"]
    roots = {root["pem"].replace("Cg==", "") for c in (*held.values(), *ours) for root in c["rootCerts"]}
    assert {len(c["rootCerts"]) for c in (*held.values(), *ours)} == {1}
    assert len({re.sub(r"\s", "", _text(root)) for root in roots}) == 1


def _text(pem: str) -> str:
    import base64

    return base64.b64decode(pem + "=" * (-len(pem) % 4)).decode()


def canonical(value: Any) -> Any:
    """Lists whose order says nothing, sorted: values of a policy's field, endpoints, memberships."""
    if isinstance(value, dict):
        return {name: canonical(item) for name, item in value.items()}
    if isinstance(value, list):
        return sorted(map(canonical, value), key=lambda item: json.dumps(item, sort_keys=True))
    return value


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Fields that two dumps show differently, as `kind name field`."""
    found = []
    for kind, fields in KEYS.items():
        one, other = ({"/".join(x[f] for f in fields): x for x in d[kind]} for d in (ours, theirs))
        found += [f"{kind} {name}: only one has it" for name in one.keys() ^ other.keys()]
        for name in sorted(one.keys() & other.keys()):
            a, b = canonical(one[name]), canonical(other[name])
            found += [f"{kind} {name} {f}: {a.get(f)} / {b.get(f)}" for f in a | b if a.get(f) != b.get(f)]
    return found


def same_dumps(mesh: MixedMesh) -> list[str]:
    """What is left of the differences once both have caught up."""
    seen: list[list[str]] = []

    def look() -> bool:
        seen.append(differences(mesh.dump(OURS), mesh.dump(THEIRS)))
        return not seen[-1]

    try:
        wait_for("the same configuration", look, 60, 0.2)
    except Exception:
        return seen[-1]
    return []


def test_config_dumps_agree_field_by_field(mesh: MixedMesh) -> None:
    dump = mesh.dump(THEIRS)
    assert len(dump["workloads"]) >= 13
    assert len(dump["services"]) >= 10
    assert len(dump["policies"]) >= 8
    assert same_dumps(mesh) == []


def test_changes_reach_both_and_are_read_alike(mesh: MixedMesh) -> None:
    before = mesh.clients()[THEIRS]["types"]["Address"]["acks"]
    mesh.write("60-new.yaml", pod("late", OURS, "sleep", "infinity"))
    mesh.write("61-new.yaml", allow("late", "late", "our-client"))
    mesh.up()
    names = {w["name"]: w for w in mesh.dump(THEIRS)["workloads"]}
    assert names["late"]["authorizationPolicies"] == ["shop/late"]
    assert "late" in {p["name"] for p in mesh.dump(THEIRS)["policies"]}
    assert same_dumps(mesh) == []
    mesh.write("60-new.yaml", None)
    mesh.write("61-new.yaml", None)
    mesh.up()
    wait_for("the pod is gone", lambda: "late" not in {w["name"] for w in mesh.dump(THEIRS)["workloads"]})
    wait_for("the policy is gone", lambda: "late" not in {p["name"] for p in mesh.dump(THEIRS)["policies"]})
    assert same_dumps(mesh) == []
    assert mesh.clients()[THEIRS]["types"]["Address"]["acks"] > before


def test_it_enrols_and_lets_go_of_running_pods(mesh: MixedMesh) -> None:
    """Add after the snapshot and Del, each acknowledged; its listeners come and go."""
    assert not listeners(mesh, "shop/visitor", present=False)
    mesh.write("62-visitor.yaml", pod("visitor", THEIRS))
    mesh.up()
    assert "shop/visitor" in mesh.enrolled()
    assert {15001, 15006, 15008} <= listeners(mesh, "shop/visitor")
    assert visitors(mesh) == ["Up"]
    text = (mesh.folder / "62-visitor.yaml").read_text()
    mesh.write("62-visitor.yaml", text.replace("version: v1}", "version: v1, istio.io/dataplane-mode: none}"))
    mesh.up()
    wait_for("it is let go", lambda: "shop/visitor" not in mesh.enrolled())
    wait_for("its listeners are gone", lambda: not listeners(mesh, "shop/visitor") & {15001, 15006, 15008})
    assert visitors(mesh) == []
    mesh.write("62-visitor.yaml", None)
    mesh.up()
    assert mesh.ready(THEIRS) == "200"


def visitors(mesh: MixedMesh) -> list[str]:
    """State of the proxies for the visitor."""
    states = mesh.dump(THEIRS)["workloadState"].values()
    return [s["state"] for s in states if (s.get("info") or {}).get("name") == "visitor"]


def listeners(mesh: MixedMesh, name: str, *, present: bool = True) -> set[int]:
    """Ports that are listened on in the pod."""
    if not present and name not in mesh.status()["pods"]:
        return set()
    lines = mesh.in_pod_netns(name, "ss", "-Hltn").splitlines()
    return {int(line.split()[3].rsplit(":", 1)[1]) for line in lines}


def test_it_survives_a_restart_of_the_control_plane(mesh: MixedMesh) -> None:
    stream = mesh.clients()[THEIRS]["stream"]
    connected = mesh.clients()[THEIRS]["connectedSeconds"]
    os.kill(mesh.status()["istiodlite"]["pid"], signal.SIGKILL)

    def back() -> bool:
        try:
            client = mesh.clients().get(THEIRS)
        except Exception:
            return False
        return client is not None and client["connectedSeconds"] < connected + 15 and settled(client)

    wait_for("it is connected again", back, 60, 0.2)
    assert stream
    assert mesh.ready(THEIRS) == "200"
    assert mesh.answers("shop/rust-client", "our-web.shop")
    assert mesh.answers("shop/our-client", "rust-web.shop")
    assert same_dumps(mesh) == []
