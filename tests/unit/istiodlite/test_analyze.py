"""Manifests with one thing wrong each, and what is said about it; and manifests about which nothing is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from istiodlite.analyze import CODES, Finding, Input, Severity, analyze
from istiodlite.manifests import load_text
from tests.unit.istiodlite.mesh import documents

NAMESPACE = "kind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}"
SERVICE = """
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
"""

WAYPOINT = """
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
"""


def deployment(name: str, namespace: str = "shop") -> str:
    return f"""
kind: Deployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      serviceAccountName: {name}
      containers: [{{name: main, image: x, ports: [{{name: http, containerPort: 8080}}]}}]
"""


def policy(spec: str, namespace: str = "shop", name: str = "p", more: str = "") -> str:
    return (
        f"kind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}{more}}}\nspec: {spec}"
    )


def strict(spec: str, namespace: str = "shop", name: str = "strict") -> str:
    return f"kind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}"


def annotated(name: str, value: str, spec: str = "") -> str:
    meta = f"{{name: odd, namespace: shop, labels: {{app: odd}}, annotations: {{{name}: '{value}'}}}}"
    return f"kind: Pod\nmetadata: {meta}\nspec: {{{spec}containers: [{{name: c, image: x}}]}}"


BASE = (NAMESPACE, deployment("web"), deployment("front"), SERVICE)


def find(*texts: str) -> list[Finding]:
    text = documents("\n---\n".join(texts)).replace("v1\nkind: Deployment", "apps/v1\nkind: Deployment")
    loaded, errors = load_text(text, "test.yaml")
    assert not errors, "\n".join(map(str, errors))
    return analyze(Input(one.object, one.body) for one in loaded)


def codes(*texts: str) -> set[str]:
    return {one.code for one in find(*texts)}


FRONT = "cluster.local/ns/shop/sa/front"
TO_WEB = "selector: {matchLabels: {app: web}}"
CASES: list[tuple[str, tuple[str, ...]]] = [
    ("selector-hits-nothing", (policy("{selector: {matchLabels: {app: wbe}}, rules: [{}]}"),)),
    ("selector-hits-nothing", (strict("{selector: {matchLabels: {app: wbe}}, mtls: {mode: STRICT}}"),)),
    (
        "selector-hits-nothing",
        (SERVICE.replace("name: web,", "name: other,").replace("app: web", "app: wbe"),),
    ),
    (
        "rule-never-matches",
        (policy("{action: DENY, rules: [{to: [{operation: {ports: ['80'], notPorts: ['80']}}]}]}"),),
    ),
    (
        "rule-never-matches",
        (policy(f"{{rules: [{{from: [{{source: {{principals: [{FRONT}], namespaces: [bank]}}}}]}}]}}"),),
    ),
    (
        "rule-never-matches",
        (
            policy(
                "{action: DENY, rules: [{from: [{source: {ipBlocks: [10.1.0.0/16], notIpBlocks: [10.0.0.0/8]}}]}]}"
            ),
        ),
    ),
    (
        "rule-never-matches",
        (
            policy(
                "{rules: [{when: [{key: destination.port, values: ['80']}, {key: destination.port, values: ['81']}]}]}"
            ),
        ),
    ),
    (
        "malformed-principal",
        (policy("{rules: [{from: [{source: {principals: [shop/front, 'cluster.local/*']}}]}]}"),),
    ),
    ("deny-only-http", (policy("{action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}"),)),
    (
        "deny-wider",
        (policy("{action: DENY, rules: [{to: [{operation: {methods: [DELETE], ports: ['8080']}}]}]}"),),
    ),
    ("allow-needs-waypoint", (policy("{rules: [{to: [{operation: {methods: [GET]}}]}, {}]}"),)),
    ("action-needs-waypoint", (policy("{action: AUDIT, rules: [{}]}"),)),
    ("dry-run", (policy("{action: DENY, rules: [{}]}", more=", annotations: {istio.io/dry-run: 'true'}"),)),
    (
        "unknown-identity",
        (policy("{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/fornt]}}]}]}"),),
    ),
    ("unknown-identity", (policy("{rules: [{from: [{source: {serviceAccounts: [fornt, front]}}]}]}"),)),
    ("unknown-namespace", (policy("{rules: [{from: [{source: {namespaces: [shpo]}}]}, {}]}"),)),
    (
        "nothing-allowed",
        (
            policy(
                f"{{{TO_WEB}, rules: [{{from: [{{source: {{principals: [cluster.local/ns/shop/sa/x]}}}}]}}]}}"
            ),
        ),
    ),
    ("nothing-allowed", (policy("{rules: [{to: [{operation: {methods: [GET]}}]}]}"),)),
    ("service-port", (policy(f"{{{TO_WEB}, rules: [{{to: [{{operation: {{ports: ['80']}}}}]}}]}}"),)),
    ("target-not-found", (policy("{targetRefs: [{kind: Service, name: wbe}], rules: [{}]}"),)),
    ("target-without-waypoint", (policy("{targetRefs: [{kind: Service, name: web}], rules: [{}]}"),)),
    (
        "waypoint-not-allowed",
        (
            WAYPOINT,
            SERVICE.replace(
                "namespace: shop}", "namespace: shop, labels: {istio.io/use-waypoint: wp}}"
            ).replace("name: web,", "name: web2,"),
            policy(f"{{{TO_WEB}, rules: [{{from: [{{source: {{principals: [{FRONT}]}}}}]}}]}}"),
        ),
    ),
    ("strict-shuts-out", (deployment("old", "legacy"), strict("{mtls: {mode: STRICT}}"))),
    ("strict-not-enforced", (deployment("old", "legacy"), strict("{mtls: {mode: STRICT}}", "legacy"))),
    ("shadowed", (strict("{mtls: {mode: STRICT}}"), strict("{mtls: {mode: PERMISSIVE}}", name="another"))),
    (
        "selector-in-root",
        (strict("{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}", "istio-system"),),
    ),
    ("disable-is-permissive", (strict("{mtls: {mode: DISABLE}}"),)),
    ("waypoint-not-found", ("kind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: wp}}",)),
    (
        "waypoint-not-found",
        (
            WAYPOINT.replace("istio-waypoint", "istio").replace("HBONE", "HTTP"),
            "kind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}}",
        ),
    ),
    (
        "waypoint-denied",
        (
            WAYPOINT,
            "kind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}}",
        ),
    ),
    (
        "waypoint-traffic-type",
        (
            WAYPOINT.replace(
                "namespace: shop}", "namespace: shop, labels: {istio.io/waypoint-for: workload}}"
            ),
            SERVICE.replace(
                "namespace: shop}", "namespace: shop, labels: {istio.io/use-waypoint: wp}}"
            ).replace("name: web,", "name: web2,"),
        ),
    ),
    ("waypoint-listeners", (WAYPOINT.replace("15008", "15009"),)),
    ("dataplane-mode", ("kind: Namespace\nmetadata: {name: a, labels: {istio.io/dataplane-mode: enabled}}",)),
    (
        "label-without-effect",
        (
            deployment("other").replace(
                "namespace: shop}", "namespace: shop, labels: {istio.io/dataplane-mode: none}}"
            ),
        ),
    ),
    (
        "sidecar-and-ambient",
        (
            "kind: Namespace\nmetadata: {name: a, labels: {istio.io/dataplane-mode: ambient, istio-injection: enabled}}",
        ),
    ),
    (
        "target-port-missing",
        (SERVICE.replace("name: web,", "name: web2,").replace("targetPort: http", "targetPort: htp"),),
    ),
    ("capture-annotation", (annotated("traffic.sidecar.istio.io/excludeInboundPorts", "80,http"),)),
    ("capture-annotation", (annotated("traffic.sidecar.istio.io/includeOutboundPorts", "80"),)),
    ("captured-less", (annotated("traffic.sidecar.istio.io/excludeInboundPorts", "9000"),)),
    ("captured-less", (annotated("traffic.sidecar.istio.io/includeInboundPorts", ""),)),
    ("captured-less", (annotated("ambient.istio.io/bypass-inbound-capture", "true"),)),
    ("capture-without-mesh", (annotated("ambient.istio.io/dns-capture", "false", "hostNetwork: true, "),)),
    (
        "entry-without-address",
        (
            "kind: ServiceEntry\nmetadata: {name: e, namespace: shop}\n"
            "spec: {hosts: [a.example.com], ports: [{number: 443, name: tls, protocol: TLS}]}",
        ),
    ),
]

_WP_SERVICE = SERVICE.replace(
    "namespace: shop}", "namespace: shop, labels: {istio.io/use-waypoint: wp}}"
).replace("name: web,", "name: web2,")
# For each code the same objects without what is wrong: what has to be silent about them, though it has seen them.
SOUND: dict[str, tuple[str, ...]] = {
    "action-needs-waypoint": (
        WAYPOINT,
        policy(
            "{action: AUDIT, targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}], rules: [{}]}"
        ),
    ),
    "allow-needs-waypoint": (
        WAYPOINT,
        _WP_SERVICE,
        policy("{targetRefs: [{kind: Service, name: web2}], rules: [{to: [{operation: {methods: [GET]}}]}]}"),
    ),
    "capture-annotation": (annotated("traffic.sidecar.istio.io/excludeInboundPorts", "80,81"),),
    "capture-without-mesh": (annotated("ambient.istio.io/dns-capture", "false"),),
    "captured-less": (annotated("traffic.sidecar.istio.io/excludeOutboundPorts", "9000"),),
    "dataplane-mode": ("kind: Namespace\nmetadata: {name: a, labels: {istio.io/dataplane-mode: none}}",),
    "deny-only-http": (policy("{action: DENY, rules: [{to: [{operation: {ports: ['8080']}}]}]}"),),
    "deny-wider": (policy("{action: DENY, rules: [{to: [{operation: {notPorts: ['8080']}}]}]}"),),
    "disable-is-permissive": (strict("{mtls: {mode: PERMISSIVE}}"),),
    "dry-run": (policy("{action: DENY, rules: [{}]}", more=", annotations: {istio.io/dry-run: 'false'}"),),
    "entry-without-address": (
        "kind: ServiceEntry\nmetadata: {name: e, namespace: shop}\nspec: {hosts: [a.example.com], "
        "addresses: [192.0.2.1], ports: [{number: 443, name: tls, protocol: TLS}]}",
        "kind: ServiceEntry\nmetadata: {name: f, namespace: shop}\nspec: {hosts: [b.example.com], "
        "resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]}",
    ),
    "label-without-effect": (
        annotated("x", "y").replace("app: odd", "app: odd, istio.io/dataplane-mode: none"),
    ),
    "malformed-principal": (policy(f"{{rules: [{{from: [{{source: {{principals: [{FRONT}]}}}}]}}]}}"),),
    "nothing-allowed": (
        policy(f"{{{TO_WEB}, rules: [{{from: [{{source: {{principals: [{FRONT}]}}}}]}}]}}"),
        policy("{rules: [{to: [{operation: {methods: [GET]}}]}, {}]}", name="two"),
    ),
    "rule-never-matches": (
        policy("{action: DENY, rules: [{to: [{operation: {ports: ['80'], notPorts: ['81']}}]}]}", name="a"),
        policy(
            f"{{rules: [{{from: [{{source: {{principals: [{FRONT}], namespaces: [shop]}}}}]}}]}}", name="b"
        ),
        policy(
            "{action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/8], notIpBlocks: [10.1.0.0/16]}}]}]}",
            name="c",
        ),
        policy(
            "{rules: [{when: [{key: destination.port, values: ['80', '81']}, {key: destination.port, values: ['81']}]}]}",
            name="d",
        ),
    ),
    "selector-hits-nothing": (
        policy(f"{{{TO_WEB}, rules: [{{}}]}}"),
        strict(f"{{{TO_WEB}, mtls: {{mode: STRICT}}}}"),
    ),
    "selector-in-root": (strict("{mtls: {mode: PERMISSIVE}}", "istio-system"),),
    "service-port": (policy(f"{{{TO_WEB}, rules: [{{to: [{{operation: {{ports: ['8080']}}}}]}}]}}"),),
    "shadowed": (
        strict("{mtls: {mode: STRICT}}"),
        strict(f"{{{TO_WEB}, mtls: {{mode: PERMISSIVE}}}}", name="another"),
    ),
    "sidecar-and-ambient": (
        "kind: Namespace\nmetadata: {name: a, labels: {istio.io/dataplane-mode: ambient, istio-injection: disabled}}",
    ),
    "strict-not-enforced": (strict("{mtls: {mode: STRICT}}"),),
    "strict-shuts-out": (deployment("more"), strict("{mtls: {mode: STRICT}}")),
    "target-not-found": (policy("{targetRefs: [{kind: Service, name: web}], rules: [{}]}"),),
    "target-port-missing": (
        SERVICE.replace("name: web,", "name: web2,").replace("targetPort: http", "targetPort: 8080"),
    ),
    "target-without-waypoint": (
        WAYPOINT,
        _WP_SERVICE,
        policy("{targetRefs: [{kind: Service, name: web2}], rules: [{}]}"),
    ),
    "unknown-identity": (
        policy("{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}]}]}", name="a"),
        policy("{rules: [{from: [{source: {serviceAccounts: [front, shop/web]}}]}]}", name="b"),
    ),
    "unknown-namespace": (policy("{rules: [{from: [{source: {namespaces: [shop, 'sh*']}}]}]}"),),
    "waypoint-denied": (
        WAYPOINT.replace("protocol: HBONE}", "protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}"),
        "kind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}}",
    ),
    "waypoint-listeners": (WAYPOINT,),
    "waypoint-not-allowed": (
        WAYPOINT,
        _WP_SERVICE,
        policy(
            f"{{{TO_WEB}, rules: [{{from: [{{source: {{principals: [{FRONT}, cluster.local/ns/shop/sa/wp]}}}}]}}]}}"
        ),
    ),
    "waypoint-not-found": (
        WAYPOINT,
        "kind: Namespace\nmetadata: {name: a, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}}",
    ),
    "waypoint-traffic-type": (
        WAYPOINT.replace("namespace: shop}", "namespace: shop, labels: {istio.io/waypoint-for: all}}"),
        _WP_SERVICE,
    ),
}


@pytest.mark.parametrize("code", SOUND)
def test_nothing_is_said_of_the_same_done_well(code: str) -> None:
    assert code not in codes(*BASE, *SOUND[code])


def test_a_sound_mesh_is_not_commented_upon() -> None:
    sound = (
        policy(
            f"{{{TO_WEB}, rules: [{{from: [{{source: {{principals: [{FRONT}]}}}}], to: [{{operation: {{ports: ['8080']}}}}]}}]}}"
        ),
        policy("{}", name="deny-all"),
        policy("{action: DENY, rules: [{from: [{source: {notNamespaces: [shop]}}]}]}", name="outsiders"),
        strict("{mtls: {mode: STRICT}}"),
    )
    assert find(*BASE, *sound) == []


@pytest.mark.parametrize(("code", "texts"), CASES, ids=[f"{n}-{code}" for n, (code, _) in enumerate(CASES)])
def test_what_is_wrong_is_said(code: str, texts: tuple[str, ...]) -> None:
    assert code in codes(*BASE, *texts)
    assert code not in codes(*BASE)


def test_every_code_is_listed_and_every_listed_one_has_a_case() -> None:
    # What is not in a manifest has tests of its own, below.
    apart = {"manifest", "strict-cuts-flows"}
    assert {code for code, _ in CASES} | apart == set(CODES)
    assert SOUND.keys() | apart == set(CODES)


def test_every_line_says_what_to_do() -> None:
    for _, texts in CASES:
        for one in find(*BASE, *texts):
            assert "\n" not in str(one)
            assert str(one).startswith(f"{one.severity} {one.code} ")


def test_policies_alone_are_not_said_to_select_or_name_nothing() -> None:
    spec = f"{{{TO_WEB}, rules: [{{from: [{{source: {{principals: [{FRONT}]}}}}]}}]}}"
    assert find(policy(spec)) == []


def test_a_policy_without_rules_shuts_everybody_out_on_purpose() -> None:
    assert "nothing-allowed" not in codes(*BASE, policy("{}"))


def test_pods_of_a_deployment_are_not_counted_twice() -> None:
    pod = "kind: Pod\nmetadata: {name: old-1, namespace: legacy, labels: {app: old, x: y}}\nspec: {containers: []}"
    (found,) = find(*BASE, deployment("old", "legacy"), pod, strict("{mtls: {mode: STRICT}}"))
    assert found.message.startswith("legacy/old is not enrolled")


def test_errors_come_first() -> None:
    found = find(*BASE, policy("{action: AUDIT, rules: [{}]}"), strict("{mtls: {mode: DISABLE}}"))
    assert [one.severity for one in found] == [Severity.ERROR, Severity.INFO]


def _run(path: Path, *more: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "daemonset.ctl", "analyze", str(path), *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    return done.returncode, done.stdout


def test_the_command_prints_a_line_for_each_finding_and_fails_on_errors(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(documents(policy("{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}")))
    status, out = _run(file)
    assert status == 1
    assert out.startswith("error deny-only-http AuthorizationPolicy shop/p spec.rules[0]: ")
    file.write_text("apiVersion: v1\nkind: Pod\n")
    status, out = _run(file, "--json")
    (found,) = json.loads(out)
    assert (status, found["code"], found["severity"]) == (1, "manifest", "error")
    file.write_text(documents(strict("{mtls: {mode: DISABLE}}")))
    assert _run(file)[0] == 0


OPENED = "istio_tcp_connections_opened_total"


def page(*rows: tuple[str, str, str, int]) -> str:
    """A metrics page: (caller, its namespace, connection_security_policy, count) to shop/web."""
    lines = [
        f'{OPENED}{{reporter="destination",source_workload="{caller}",source_workload_namespace="{place}",'
        f'destination_workload="web",destination_workload_namespace="shop",'
        f'connection_security_policy="{policy}"}} {count}'
        for caller, place, policy, count in rows
    ]
    return "\n".join(["# TYPE istio_tcp_connections_opened counter", *lines, ""])


def test_strict_is_held_against_what_agents_saw(tmp_path: Path) -> None:
    manifests = documents(
        "\n---\n".join((NAMESPACE, SERVICE, deployment("web"), strict("{mtls: {mode: STRICT}}")))
    )
    (tmp_path / "mesh.yaml").write_text(manifests.replace("v1\nkind: Depl", "apps/v1\nkind: Depl"))
    pages = (
        page(("old", "legacy", "unknown", 3), ("new", "shop", "mutual_tls", 9)),
        page(("old", "legacy", "unknown", 4), ("unknown", "unknown", "none", 1)),
    )
    for number, text in enumerate(pages):
        (tmp_path / f"{number}.prom").write_text(text)
    told = [*("--metrics", str(tmp_path / "0.prom")), *("--metrics", str(tmp_path / "1.prom"))]
    command = [sys.executable, "-m", "daemonset.ctl", "analyze", str(tmp_path / "mesh.yaml")]
    done = subprocess.run([*command, *told], capture_output=True, text=True, timeout=60)
    found = [line for line in done.stdout.splitlines() if "strict-cuts-flows" in line]
    assert len(found) == 2
    assert "saw 7 connections without mTLS from legacy/old to shop/web" in found[1]
    assert "saw 1 connections without mTLS from unknown callers to shop/web" in found[0]
    assert (
        "strict-cuts-flows" not in subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    )
    (tmp_path / "0.prom").write_text(
        page(("old", "legacy", "mutual_tls", 3), ("old", "legacy", "unknown", 0))
    )
    sound = subprocess.run([*command, *told[:2]], capture_output=True, text=True, timeout=60)
    assert "strict-cuts-flows" not in sound.stdout, "with mTLS, or none at all"
    (tmp_path / "0.prom").write_text("istio_tcp{ nonsense")
    bad = subprocess.run([*command, *told], capture_output=True, text=True, timeout=60)
    assert bad.returncode != 0
    assert "not a metrics page" in bad.stderr
