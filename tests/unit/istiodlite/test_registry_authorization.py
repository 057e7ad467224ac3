"""AuthorizationPolicy and PeerAuthentication as agents get them: each row of Istio's behaviour one case."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from istiodlite.api import authorization_pb2 as pb
from tests.unit.istiodlite.mesh import WEB_POD, WEB_UID, Mesh

STATIC = "istio-system/istio_converted_static_strict"


def policy(spec: str, name: str = "p", namespace: str = "a", annotations: str = "") -> str:
    return (
        f"kind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace},"
        f" annotations: {{{annotations}}}}}\nspec: {spec}"
    )


def groups(text: str) -> list[pb.Group]:
    return list(text_format.Parse(text, pb.Authorization()).groups)


X = "cluster.local/ns/a/sa/x"
FROM_X = f"from: [{{source: {{principals: [{X}]}}}}]"
PRINCIPAL_X = f'rules {{ matches {{ principals {{ exact: "{X}" }} }} }}'
GET = "to: [{operation: {methods: [GET]}}]"

ROWS = [
    ("ALLOW without rules denies all", "{}", ""),
    ("an empty rule allows all", "{rules: [{}]}", "groups {}"),
    ("only x", f"{{rules: [{{{FROM_X}}}]}}", f"groups {{ {PRINCIPAL_X} }}"),
    (
        "namespaces and ports",
        "{rules: [{from: [{source: {namespaces: ['a*']}}], to: [{operation: {ports: ['8080']}}]}]}",
        'groups { rules { matches { destination_ports: 8080 } } rules { matches { namespaces { prefix: "a" } } } }',
    ),
    ("ALLOW by method denies all", f"{{rules: [{{{GET}}}]}}", ""),
    (
        "an L7 rule is dropped, an L4 rule stays",
        f"{{rules: [{{{FROM_X}}}, {{{GET}}}]}}",
        f"groups {{ {PRINCIPAL_X} }}",
    ),
    (
        "DENY by method has no effect",
        f"{{action: DENY, rules: [{{{GET}}}]}}",
        "groups { rules { matches {} } }",
    ),
    (
        "DENY by principal and method has no effect",
        f"{{action: DENY, rules: [{{{FROM_X}, {GET}}}]}}",
        f"groups {{ rules {{ matches {{}} }} {PRINCIPAL_X} }}",
    ),
    (
        "DENY by port and method denies the port",
        "{action: DENY, rules: [{to: [{operation: {ports: ['80'], methods: [GET]}}]}]}",
        "groups { rules { matches { destination_ports: 80 } } }",
    ),
    (
        "DENY by header has no effect",
        "{action: DENY, rules: [{when: [{key: 'request.headers[a]', values: [b]}]}]}",
        "groups { rules { matches {} } }",
    ),
    (
        "DENY without identity is STRICT",
        "{action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}",
        "groups { rules { matches { not_principals { presence {} } } } }",
    ),
    (
        "source addresses",
        "{rules: [{from: [{source: {ipBlocks: [10.0.0.0/8], notIpBlocks: ['10.1.2.3', 'fd00::/8']}}]}]}",
        r'groups { rules { matches { source_ips { address: "\n\000\000\000" length: 8 }'
        r' not_source_ips { address: "\n\001\002\003" length: 32 }'
        r' not_source_ips { address: "\375\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000" length: 8 } } } }',
    ),
    (
        "service accounts take the policy's namespace",
        "{rules: [{from: [{source: {serviceAccounts: [x, b/y]}}]}]}",
        'groups { rules { matches { service_accounts { namespace: "a" serviceAccount: "x" }'
        ' service_accounts { namespace: "b" serviceAccount: "y" } } } }',
    ),
    (
        "conditions at L4, each a clause of its own",
        "{rules: [{when: [{key: source.ip, values: [10.0.0.1]}, {key: source.namespace, notValues: ['*x']},"
        " {key: source.principal, values: ['*']}, {key: destination.ip, values: [10.0.0.2]},"
        " {key: destination.port, values: ['90']}]}]}",
        r'groups { rules { matches { source_ips { address: "\n\000\000\001" length: 32 } } }'
        r' rules { matches { not_namespaces { suffix: "x" } } }'
        r" rules { matches { principals { presence {} } } }"
        r' rules { matches { destination_ips { address: "\n\000\000\002" length: 32 } } }'
        r" rules { matches { destination_ports: 90 } } }",
    ),
    (
        "alternatives of from are matches of one clause",
        "{rules: [{from: [{source: {namespaces: [m]}}, {source: {namespaces: [n]}}]}]}",
        'groups { rules { matches { namespaces { exact: "m" } } matches { namespaces { exact: "n" } } } }',
    ),
    (
        "a trust domain an agent cannot check drops an ALLOW rule",
        "{rules: [{from: [{source: {namespaces: [m], trustDomains: [td]}}]}]}",
        "",
    ),
    ("ALLOW by remote address denies all", "{rules: [{from: [{source: {remoteIpBlocks: [10.0.0.1]}}]}]}", ""),
    (
        "ALLOW by request principal denies all",
        "{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}",
        "",
    ),
    (
        "ALLOW by an L7 condition denies all",
        "{rules: [{when: [{key: source.serviceAccount, values: [x]}]}]}",
        "",
    ),
]


@pytest.mark.parametrize(("spec", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_conversion_of_a_policy(spec: str, expected: str) -> None:
    sent = Mesh(policy(spec)).policies["a/p"]
    assert list(sent.groups) == groups(expected)
    assert sent.action == (pb.DENY if "action: DENY" in spec else pb.ALLOW)


SOURCE_FIELDS = {"remoteIpBlocks: [10.0.0.1]", "requestPrincipals: [x]", "notRequestPrincipals: [x]"}
OPERATION_FIELDS = {
    f"{name}: [x]" for name in ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
}


@pytest.mark.parametrize("field", sorted(SOURCE_FIELDS))
def test_every_source_field_beyond_l4_drops_an_allow_rule(field: str) -> None:
    assert (
        not Mesh(policy(f"{{rules: [{{from: [{{source: {{namespaces: [a], {field}}}}}]}}]}}"))
        .policies["a/p"]
        .groups
    )


@pytest.mark.parametrize("field", sorted(OPERATION_FIELDS))
def test_every_operation_field_beyond_l4_drops_an_allow_rule(field: str) -> None:
    spec = f"{{rules: [{{to: [{{operation: {{ports: ['1'], {field}}}}}]}}]}}"
    assert not Mesh(policy(spec)).policies["a/p"].groups


@pytest.mark.parametrize(
    ("namespace", "selector", "scope"),
    [
        ("a", "", pb.NAMESPACE),
        ("istio-system", "", pb.GLOBAL),
        ("a", "selector: {matchLabels: {app: web}}", pb.WORKLOAD_SELECTOR),
        ("istio-system", "selector: {matchLabels: {app: web}}", pb.WORKLOAD_SELECTOR),
        ("a", "selector: {}", pb.NAMESPACE),
    ],
)
def test_scope(namespace: str, selector: str, scope: int) -> None:
    assert Mesh(policy(f"{{{selector}}}", namespace=namespace)).policies[f"{namespace}/p"].scope == scope


@pytest.mark.parametrize(
    "spec",
    [
        "{action: AUDIT, rules: [{}]}",
        "{action: CUSTOM, provider: {name: x}, rules: [{}]}",
    ],
)
def test_actions_that_agents_do_not_know_are_not_sent_and_say_so(spec: str) -> None:
    mesh = Mesh(policy(spec))
    assert not mesh.policies
    assert mesh.reasons("ZtunnelAccepted") == {"AuthorizationPolicy a/p": "UnsupportedValue"}


def test_a_policy_for_a_waypoint_is_not_sent() -> None:
    mesh = Mesh(policy("{targetRefs: [{kind: Service, group: '', name: web}], rules: [{}]}"))
    assert not mesh.policies


def test_a_dry_run_is_not_sent() -> None:
    assert not Mesh(policy("{rules: [{}]}", annotations="istio.io/dry-run: 'true'")).policies


def test_the_status_tells_no_effect_from_more_restrictive() -> None:
    def message(spec: str) -> str:
        return next(iter(Mesh(policy(spec)).registry.conditions())).message

    assert "no effect" in message(f"{{action: DENY, rules: [{{{FROM_X}, {GET}}}]}}")
    ports = "{action: DENY, rules: [{to: [{operation: {ports: ['80'], methods: [GET]}}]}]}"
    assert "match more" in message(ports)
    assert "more is denied" in message(f"{{rules: [{{{GET}}}]}}")


def applied(mesh: Mesh) -> list[str]:
    return list(mesh.workloads[WEB_UID].authorization_policies)


def test_a_pod_lists_selecting_policies_of_its_namespace_and_of_the_root() -> None:
    selector = "{selector: {matchLabels: {app: web}}, rules: [{}]}"
    mesh = Mesh(
        WEB_POD,
        policy(selector, "own", "shop"),
        policy(selector, "root", "istio-system"),
        policy(selector, "elsewhere", "other"),
        policy("{rules: [{}]}", "all", "shop"),
        policy("{selector: {matchLabels: {app: db}}}", "db", "shop"),
    )
    assert applied(mesh) == ["istio-system/root", "shop/own"]


def test_policies_that_are_not_sent_are_not_listed() -> None:
    selector = "selector: {matchLabels: {app: web}}, rules: [{}]"
    mesh = Mesh(
        WEB_POD,
        policy(f"{{action: AUDIT, {selector}}}", "audit", "shop"),
        policy(f"{{{selector}}}", "dry", "shop", "istio.io/dry-run: 'true'"),
    )
    assert applied(mesh) == []


def peer(
    mode: str = "", *, name: str = "default", namespace: str = "shop", ports: str = "", **more: str
) -> str:
    selector = more.get("selector", "selector: {matchLabels: {app: web}}, " if ports else "")
    mtls = f"mtls: {{mode: {mode}}}" if mode else "mtls: {}"
    levels = f", portLevelMtls: {{{ports}}}" if ports else ""
    created = f", creationTimestamp: '{more['created']}'" if "created" in more else ""
    return (
        f"kind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}{created}}}\n"
        f"spec: {{{selector}{mtls}{levels}}}"
    )


SELECT_WEB = "selector: {matchLabels: {app: web}}, "
MESH_STRICT = peer("STRICT", namespace="istio-system")


def test_strict_in_the_mesh_attaches_the_static_policy() -> None:
    mesh = Mesh(WEB_POD)
    assert mesh.apply(MESH_STRICT) == {STATIC, WEB_UID}
    assert applied(mesh) == [STATIC]
    sent = mesh.policies[STATIC]
    assert (sent.scope, sent.action) == (pb.WORKLOAD_SELECTOR, pb.DENY)
    assert list(sent.groups) == groups("groups { rules { matches { not_principals { presence {} } } } }")
    assert mesh.remove("PeerAuthentication", "istio-system", "default") == {f"-{STATIC}", WEB_UID}


def test_the_static_policy_is_there_as_soon_as_any_object_is() -> None:
    mesh = Mesh(WEB_POD, peer("PERMISSIVE"))
    assert set(mesh.policies) == {STATIC}
    assert applied(mesh) == []


@pytest.mark.parametrize(
    ("texts", "strict"),
    [
        ([MESH_STRICT, peer("PERMISSIVE")], False),
        ([MESH_STRICT, peer("UNSET")], True),
        ([MESH_STRICT, peer("DISABLE")], False),
        ([peer("STRICT")], True),
        ([peer("STRICT"), peer("PERMISSIVE", name="w", selector=SELECT_WEB)], False),
        ([peer("PERMISSIVE"), peer("STRICT", name="w", selector=SELECT_WEB)], True),
        ([peer("STRICT"), peer("UNSET", name="w", selector=SELECT_WEB)], True),
        ([peer("STRICT", namespace="istio-system", selector=SELECT_WEB)], False),
        ([peer("STRICT", created="2025"), peer("PERMISSIVE", name="young", created="2026")], True),
        ([peer("STRICT", name="young", created="2026"), peer("PERMISSIVE", created="2025")], False),
    ],
)
def test_the_effective_mode(texts: list[str], strict: bool) -> None:
    assert applied(Mesh(WEB_POD, *texts)) == ([STATIC] if strict else [])


def test_selectors_in_the_root_namespace_do_not_count_even_for_its_own_pods() -> None:
    own = WEB_POD.replace("namespace: shop", "namespace: istio-system")
    selecting = peer("STRICT", name="w", namespace="istio-system", ports="80: {mode: PERMISSIVE}")
    mesh = Mesh(own, selecting)
    assert set(mesh.policies) == {STATIC}
    (workload,) = mesh.workloads.values()
    assert not workload.authorization_policies


CONVERTED = "shop/converted_peer_authentication_w"
NO_IDENTITY = "rules { matches { not_principals { presence {} } } }"
PORT_ROWS = [
    (
        "STRICT with one open port",
        [peer("STRICT", name="w", ports="8080: {mode: PERMISSIVE}")],
        f"groups {{ {NO_IDENTITY} rules {{ matches {{ not_destination_ports: 8080 }} }} }}",
    ),
    (
        "PERMISSIVE with one strict port",
        [peer("PERMISSIVE", name="w", ports="9090: {mode: STRICT}")],
        "groups { rules { matches { not_principals { presence {} } destination_ports: 9090 } } }",
    ),
    (
        "PERMISSIVE with two strict ports",
        [peer("PERMISSIVE", name="w", ports="9090: {mode: STRICT}, 80: {mode: STRICT}")],
        "groups { rules { matches { not_principals { presence {} } destination_ports: 80 } } }"
        " groups { rules { matches { not_principals { presence {} } destination_ports: 9090 } } }",
    ),
    (
        "inherited STRICT with an open port",
        [MESH_STRICT, peer("UNSET", name="w", ports="9090: {mode: DISABLE}")],
        f"groups {{ rules {{ matches {{ not_destination_ports: 9090 }} }} {NO_IDENTITY} }}",
    ),
    (
        "inherited STRICT past an UNSET namespace",
        [MESH_STRICT, peer("UNSET"), peer("UNSET", name="w", ports="9090: {mode: PERMISSIVE}")],
        f"groups {{ rules {{ matches {{ not_destination_ports: 9090 }} }} {NO_IDENTITY} }}",
    ),
]


@pytest.mark.parametrize(
    ("texts", "expected"), [row[1:] for row in PORT_ROWS], ids=[row[0] for row in PORT_ROWS]
)
def test_port_exceptions_become_a_policy_that_replaces_the_static_one(
    texts: list[str], expected: str
) -> None:
    mesh = Mesh(WEB_POD, *texts)
    assert list(mesh.policies[CONVERTED].groups) == groups(expected)
    assert applied(mesh) == [CONVERTED]


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        (peer("STRICT", name="w", ports="8080: {mode: STRICT}"), [STATIC]),
        (peer("STRICT", name="w", ports="8080: {mode: UNSET}"), [STATIC]),
        (peer("PERMISSIVE", name="w", ports="8080: {mode: DISABLE}"), []),
    ],
)
def test_ports_that_are_no_exception_need_no_policy(text: str, listed: list[str]) -> None:
    mesh = Mesh(WEB_POD, text)
    assert set(mesh.policies) == {STATIC}
    assert applied(mesh) == listed
