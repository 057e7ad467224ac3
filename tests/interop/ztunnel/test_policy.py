"""Policies of one mesh enforced by both agents alike, and how each says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from daemonset.demo.mesh import wait_for
from tests.interop.ztunnel.mesh import OURS, STRICT, THEIRS, MixedMesh, allow
from tests.interop.ztunnel.ticker import Ticker

pytestmark = [pytest.mark.root, pytest.mark.ztunnel]

FILE = "50-policy.yaml"
DENY_PORT = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-that-port, namespace: shop}
spec:
  action: DENY
  rules: [{to: [{operation: {ports: ["7002"]}}]}]
"""


@pytest.fixture
def policy(mesh: MixedMesh) -> Iterator[MixedMesh]:
    """The mesh, with this test's policies taken away afterwards."""
    yield mesh
    mesh.write(FILE, None)
    mesh.up()
    for client, host in (("our-guest", "rust-web.shop"), ("rust-guest", "our-web.shop")):
        wait_for("everybody may again", lambda c=client, h=host: mesh.answers(f"shop/{c}", h))  # type: ignore[misc]


def refusal(mesh: MixedMesh, node: str, direction: str, client: str) -> dict[str, str]:
    """The newest failed connection of a client in the agent's access log."""

    def look() -> dict[str, str] | None:
        lines = [e for e in mesh.access_log(node) if e.get("src.workload") == client]
        failed = [e for e in lines if e.get("direction") == direction and e.get("error")]
        return failed[-1] if failed else None

    return wait_for(f"{node} logs that {client} was refused", look)


@pytest.mark.parametrize(("source", "target"), [("our", "rust"), ("rust", "our")])
def test_an_allow_policy_refuses_others_with_401(policy: MixedMesh, source: str, target: str) -> None:
    host = f"{target}-web.shop"
    policy.write(FILE, allow("callers", f"{target}-server", f"{source}-client"))
    policy.up()
    wait_for("the guest is refused", lambda: not policy.answers(f"shop/{source}-guest", host))
    assert policy.answers(f"shop/{source}-client", host)
    here, there = (OURS, THEIRS) if source == "our" else (THEIRS, OURS)
    mine = refusal(policy, here, "outbound", f"{source}-guest")
    theirs = refusal(policy, there, "inbound", f"{source}-guest")
    assert "401" in mine["line"]
    for line in (mine, theirs):
        assert line["src.identity"] == f"spiffe://cluster.local/ns/shop/sa/{source}-guest"
        assert line["dst.identity"] == f"spiffe://cluster.local/ns/shop/sa/{target}-server"
    if source == "our":
        assert mine["reason"] == "peer_refused"
        assert "allow policies exist, but none allowed" in theirs["error"]
    else:
        assert mine["error"] == "http status: 401 Unauthorized"
        assert theirs["reason"] == "policy_no_match"
    samples = policy.metrics(policy.netns(there))["istio_tcp_connections_failed_total"]
    assert any(
        {("reporter", "destination"), ("response_flags", "DENY"), ("source_workload", f"{source}-guest")}
        <= set(key)
        for key in samples
    )


@pytest.mark.parametrize(("source", "target"), [("our", "rust"), ("rust", "our")])
def test_a_deny_policy_by_port(policy: MixedMesh, source: str, target: str) -> None:
    client, host = f"shop/{source}-client", f"{target}-web.shop"
    policy.write(FILE, DENY_PORT)
    policy.up()
    wait_for("the port is refused", lambda: "error" in policy.run(client, "attempt", host, "7002") or None)
    assert policy.answers(client, host)


@pytest.mark.parametrize("target", ["our", "rust"])
def test_strict_refuses_plaintext_only(policy: MixedMesh, target: str) -> None:
    host = f"{target}-web.shop"
    assert policy.answers("outside/stranger", host)
    policy.write(FILE, STRICT)
    policy.up()
    wait_for("plaintext is refused", lambda: not policy.answers("outside/stranger", host))
    for source in ("our", "rust"):
        assert policy.answers(f"shop/{source}-client", host)


@pytest.mark.parametrize(("source", "target"), [("our", "rust"), ("rust", "our")])
def test_a_policy_change_cuts_open_connections_of_those_it_refuses(
    policy: MixedMesh, source: str, target: str
) -> None:
    host, app = f"{target}-web.shop", f"{target}-server"
    policy.write(FILE, allow("callers", app, f"{source}-client", f"{source}-guest"))
    policy.up()
    assert policy.answers(f"shop/{source}-guest", host)
    kept = Ticker(policy, f"shop/{source}-client", host)
    cut = Ticker(policy, f"shop/{source}-guest", host)
    try:
        policy.write(FILE, allow("callers", app, f"{source}-client"))
        policy.up()
        wait_for("the guest's connection is cut", lambda: cut.end, 60)
        assert kept.alive()
    finally:
        kept.close()
        cut.close()
    there = THEIRS if source == "our" else OURS
    said = refusal(policy, there, "inbound", f"{source}-guest")
    assert "policy" in said["line"]
