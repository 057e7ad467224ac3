"""config_dump: the shape that Istio's command line reads, and nothing secret in it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio

from hbone.svid import Svid
from tests.unit.ztunnel.agentbench import Bench
from tests.unit.ztunnel.doubles import Recorder, service, workload
from ztunnel import config_dump
from ztunnel.identity.manager import Held, IdentityManager
from ztunnel.state.model import Membership, Port
from ztunnel.state.policy import Action, Clause, Match, Policy, PolicyScope, Rule, StringMatcher

WEB = workload(
    "web", "10.0.0.2", services=(Membership("shop/web.shop.svc.cluster.local", (Port(80, 8080),)),)
)
POLICY = Policy(
    "shop",
    "callers",
    PolicyScope.WORKLOAD_SELECTOR,
    Action.ALLOW,
    (
        Rule(
            (
                Clause(
                    (
                        Match(
                            principals=StringMatcher(exact=frozenset({"a"}), presence=True),
                            destination_ports=frozenset({80}),
                            service_accounts=frozenset({("shop", "client")}),
                        ),
                    )
                ),
            )
        ),
    ),
)


async def dump(bench: Bench) -> dict[str, Any]:
    now = datetime.now(UTC)
    held = [
        Held(WEB.identity, 1, Svid(WEB.identity, b"", b"VERY PRIVATE", b"", now, now + timedelta(1), 1)),
        Held(workload("b", "10.0.0.8").identity, 2, error="denied"),
        Held(workload("c", "10.0.0.9").identity, 3),
    ]
    identities: Any = Recorder(IdentityManager, held=held)
    pages = config_dump.config_dump(
        config=bench.config,
        snapshot=bench.store.snapshot,
        identities=identities,
        pods=bench.pods,
        flows=bench.flows,
        version="1",
    )
    text = json.dumps(pages)
    assert "VERY PRIVATE" not in text
    shown: dict[str, Any] = json.loads(text)
    return shown


@pytest.mark.trio
async def test_the_shape_is_istios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_dump, "_certificates", lambda pem: [])
    bench = Bench()
    await bench.know(WEB, services=(service("web", "10.1.0.1", Port(80, 8080)),), policies=(POLICY,))
    pod = await bench.enrol(WEB)
    bench.request(pod, "10.0.0.1", "10.0.0.2", "10.0.0.2:8080")
    shown = await dump(bench)
    assert set(shown) == {
        "workloads",
        "services",
        "policies",
        "stagedServices",
        "staticConfig",
        "version",
        "config",
        "certificates",
        "workloadState",
    }
    (web,) = shown["workloads"]
    assert (web["workloadIps"], web["protocol"], web["status"]) == (["10.0.0.2"], "HBONE", "Healthy")
    (found,) = shown["services"]
    assert found["vips"] == ["net1/10.1.0.1"]
    assert found["ports"] == {"80": 8080}
    assert found["endpoints"][WEB.uid]["port"] == {"80": 8080}
    (policy,) = shown["policies"]
    assert (policy["scope"], policy["action"]) == ("WorkloadSelector", "Allow")
    assert policy["rules"] == [
        [
            [
                {
                    "principals": [{"Exact": "a"}, {"Presence": []}],
                    "destinationPorts": [80],
                    "serviceAccounts": [{"namespace": "shop", "serviceAccount": "client"}],
                }
            ]
        ]
    ]
    states = [certificate["state"] for certificate in shown["certificates"]]
    assert states == ["Available", "Unavailable: denied", "Initializing"]
    state = shown["workloadState"][WEB.uid]
    assert state["state"] == "Up"
    assert state["info"] == {"name": "web", "namespace": "shop", "serviceAccount": "web"}
    assert state["connections"]["inbound"] == [
        {
            "src": "10.0.0.1:41200",
            "originalDst": "10.0.0.2:15008",
            "actualDst": "10.0.0.2:8080",
            "protocol": "HBONE",
        }
    ]
    (live,) = config_dump.connections(bench.flows, trio.current_time())
    assert (live["pod"], live["authority"], live["route"]) == ("shop/web", "10.0.0.2:8080", "local")
    bench.dispose()
