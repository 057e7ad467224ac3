"""Manifests: every refusal names the place and what to do, and hides no other object."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istiodlite.manifests import load_folder, load_text
from istiodlite.manifests.reader import MAX_DEPTH
from istiodlite.objects import AuthorizationPolicy, MtlsMode, PeerAuthentication, Pod
from tests.unit.istiodlite.mesh import documents


def errors(text: str, file: str = "f.yaml") -> list[str]:
    return [str(error) for error in load_text(text, file)[1]]


GOOD = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"


def body(kind: str, spec: str, meta: str = "name: x, namespace: shop") -> str:
    return documents(f"kind: {kind}\nmetadata: {{{meta}}}\nspec: {spec}")


def policy(spec: str, annotations: str = "") -> str:
    return body("AuthorizationPolicy", spec, f"name: x, namespace: shop, annotations: {{{annotations}}}")


def source(fields: str, action: str = "ALLOW") -> str:
    return policy(
        f"{{action: {action}, provider: P, rules: [{{from: [{{source: {{{fields}}}}}]}}]}}".replace(
            "provider: P, ", "provider: {name: p}, " if action == "CUSTOM" else ""
        )
    )


def operation(fields: str) -> str:
    return policy(f"{{rules: [{{to: [{{operation: {{{fields}}}}}]}}]}}")


def when(fields: str, action: str = "ALLOW") -> str:
    provider = "provider: {name: p}, " if action == "CUSTOM" else ""
    return policy(f"{{action: {action}, {provider}rules: [{{when: [{{{fields}}}]}}]}}")


ELEVEN = ", ".join(f"a{i}" for i in range(17))
REFUSED = [
    # the file itself
    ("syntax", "a: [1", "not valid YAML"),
    ("alias", "a: &x 1\nb: *x", "alias \"*x\" (line 2); write the value out"),
    ("depth", "[" * (MAX_DEPTH + 5) + "]" * (MAX_DEPTH + 5), "nested deeper than"),
    ("duplicate key", "a: 1\na: 2", 'key "a" is given twice (line 2); keep one'),
    ("tag", "a: !!python/object:os.system x", "tag"),
    ("own tag", "a: !x y", "remove it"),
    ("list", "- a", "is not a Kubernetes object"),
    ("text", "hello", "is not a Kubernetes object"),
    # identity
    ("no kind", "apiVersion: v1\nmetadata: {name: x}", "kind: is missing; add it"),
    ("unknown kind", "apiVersion: v1\nkind: Widget\nmetadata: {name: x}", '"Widget" is not known; remove'),
    ("version", "apiVersion: v1\nkind: AuthorizationPolicy\nmetadata: {name: x}", "use security.istio.io/v1"),
    ("no name", "apiVersion: v1\nkind: Pod\nmetadata: {}", "metadata.name: is missing; add it"),
    ("bad name", "apiVersion: v1\nkind: Pod\nmetadata: {name: A_b}", "is not a valid name"),
    ("bad namespace", "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: a.b}", "not a valid namespace"),
    ("label number", body("Pod", "{}", "name: x, labels: {version: 1}"), "write 1 in quotes"),
    ("label key", body("Pod", "{}", "name: x, labels: {'a b': c}"), "is not a valid label key"),
    ("label value", body("Pod", "{}", "name: x, labels: {a: 'b c'}"), "is not a valid label value"),
    # core kinds
    ("container port", body("Pod", "{containers: [{name: c, ports: [{containerPort: 0}]}]}"), "from 1 to 65535"),
    ("host network", body("Pod", "{hostNetwork: 'yes'}"), "must be true or false"),
    ("pod address", body("Pod", "{}") + "status: {podIP: 10.0.0.300}", "status.podIP: \"10.0.0.300\" is not an IP"),
    ("pod phase", body("Pod", "{}") + "status: {phase: Over}", "must be one of Pending"),
    ("cluster address", body("Service", "{clusterIP: x}"), "spec.clusterIP: \"x\" is not an IP address"),
    ("service port twice", body("Service", "{ports: [{port: 1, name: a}, {port: 1, name: b}]}"), "listed twice"),
    ("port name twice", body("Service", "{ports: [{port: 1}, {port: 2}]}"), "give each its own name"),
    ("quoted target", body("Service", "{ports: [{port: 1, targetPort: '80'}]}"), "remove the quotes"),
    ("service type", body("Service", "{type: Odd}"), "must be one of ClusterIP"),
    ("selector", body("Service", "{selector: {a: 1}}"), "spec.selector.a: must be text"),
    ("expression without values", body("Gateway", "{gatewayClassName: x, listeners: [{name: a, port: 1, protocol: HBONE, allowedRoutes: {namespaces: {from: Selector, selector: {matchExpressions: [{key: a, operator: In}]}}}}]}"), "In needs at least one"),
    ("gateway address", body("Gateway", "{gatewayClassName: x}") + "status: {addresses: [{value: x}]}", "not an IP"),
    # service entries
    ("no host", body("ServiceEntry", "{}"), "spec.hosts: is missing"),
    ("bare wildcard", body("ServiceEntry", "{hosts: ['*']}"), "too wide"),
    ("bad host", body("ServiceEntry", "{hosts: ['a b']}"), "is not a host name"),
    ("bad CIDR", body("ServiceEntry", "{hosts: [a.b], addresses: [10.0.0.0/33]}"), "is not an IP address or CIDR"),
    ("CIDR and DNS", body("ServiceEntry", "{hosts: [a.b], resolution: DNS, addresses: [10.0.0.0/8]}"), "a CIDR needs"),
    ("entry port twice", body("ServiceEntry", "{hosts: [a.b], ports: [{number: 1, name: a}, {number: 1, name: b}]}"), "listed twice"),
    ("entry port 0", body("ServiceEntry", "{hosts: [a.b], ports: [{number: 0, name: a}]}"), "from 1 to 65535"),
    ("protocol", body("ServiceEntry", "{hosts: [a.b], ports: [{number: 1, name: a, protocol: X}]}"), "must be one of HTTP"),
    ("NONE with endpoints", body("ServiceEntry", "{hosts: [a.b], endpoints: [{address: 1.1.1.1}]}"), "takes no endpoints"),
    ("STATIC with a name", body("ServiceEntry", "{hosts: [a.b], resolution: STATIC, endpoints: [{address: c.d}]}"), "needs an IP"),
    ("selector and endpoints", body("ServiceEntry", "{hosts: [a.b], resolution: STATIC, workloadSelector: {}, endpoints: [{address: 1.1.1.1}]}"), "keep one of the two"),
    ("wildcard DNS", body("ServiceEntry", "{hosts: ['*.b'], resolution: DNS}"), "needs endpoints"),
    ("two round robin", body("ServiceEntry", "{hosts: [a.b, c.d], resolution: DNS_ROUND_ROBIN}"), "takes one host"),
    ("dynamic host", body("ServiceEntry", "{hosts: [a.b], resolution: DYNAMIC_DNS}"), "wildcard hosts only"),
    ("dynamic protocol", body("ServiceEntry", "{hosts: ['*.b'], resolution: DYNAMIC_DNS, ports: [{number: 1, name: a, protocol: TCP}]}"), "takes HTTP"),
    ("endpoint port name", body("ServiceEntry", "{hosts: [a.b], resolution: STATIC, endpoints: [{address: 1.1.1.1, ports: {x: 1}}]}"), "not the name of one of"),
    ("unknown entry field", body("ServiceEntry", "{hosts: [a.b], adresses: []}"), "spec.adresses: unknown field"),
    ("no address", body("WorkloadEntry", "{}"), "spec.address: is missing"),
    ("unix socket", body("WorkloadEntry", "{address: 'unix:///x'}"), "not reachable through the mesh"),
    ("endpoint address", body("WorkloadEntry", "{address: 'a b'}"), "neither an IP address nor a host name"),
    # workload groups
    ("no template", body("WorkloadGroup", "{}"), "spec.template: is missing"),
    ("template field", body("WorkloadGroup", "{template: {adress: x}}"), "spec.template.adress: unknown field"),
    ("template address", body("WorkloadGroup", "{template: {address: 'unix:///x'}}"), "spec.template.address: unix sockets"),
    ("group label", body("WorkloadGroup", "{template: {}, metadata: {labels: {a: 'b c'}}}"), "spec.metadata.labels.a: \"b c\" is not"),
    ("group field", body("WorkloadGroup", "{template: {}, metadata: {name: x}}"), "spec.metadata.name: unknown field"),
    ("no probe method", body("WorkloadGroup", "{template: {}, probe: {periodSeconds: 5}}"), "spec.probe: has no methods"),
    ("two probe methods", body("WorkloadGroup", "{template: {}, probe: {tcpSocket: {port: 1}, exec: {command: [x]}}}"), "spec.probe: has 2 methods"),
    ("probe period", body("WorkloadGroup", "{template: {}, probe: {tcpSocket: {port: 1}, periodSeconds: -1}}"), "spec.probe.periodSeconds: must be from 0"),
    ("probe port", body("WorkloadGroup", "{template: {}, probe: {tcpSocket: {}}}"), "spec.probe.tcpSocket.port: is missing"),
    ("probe scheme", body("WorkloadGroup", "{template: {}, probe: {httpGet: {port: 1, scheme: FTP}}}"), "spec.probe.httpGet.scheme: must be one of"),
    ("probe header", body("WorkloadGroup", "{template: {}, probe: {httpGet: {port: 1, httpHeaders: [{name: 'a b'}]}}}"), "spec.probe.httpGet.httpHeaders[0].name: \"a b\" is not a header name"),
    ("probe command", body("WorkloadGroup", "{template: {}, probe: {exec: {command: []}}}"), "spec.probe.exec.command: is missing"),
    # authorization policies
    ("misspelt field", policy("{rule: []}"), "spec.rule: unknown field; known here: selector"),
    ("misspelt source", source("principal: [x]"), "spec.rules[0].from[0].source.principal: unknown field"),
    ("action", policy("{action: allow}"), 'must be one of ALLOW, DENY, AUDIT, CUSTOM, not "allow"'),
    ("selector and target", policy("{selector: {}, targetRefs: [{kind: Service, name: a}]}"), "keep one of the two"),
    ("both targets", policy("{targetRef: {kind: Service, name: a}, targetRefs: []}"), "keep targetRefs"),
    ("target kind", policy("{targetRefs: [{kind: Pod, name: a}]}"), "use a Gateway, Service or ServiceEntry"),
    ("target namespace", policy("{targetRefs: [{kind: Service, name: a, namespace: b}]}"), "another namespace"),
    ("target name", policy("{targetRefs: [{kind: Service}]}"), "spec.targetRefs[0].name: is missing"),
    ("17 targets", policy("{targetRefs: [" + "{kind: Service, name: a}, " * 17 + "]}"), "more than 16"),
    ("DENY without rules", policy("{action: DENY}"), "without rules never matches"),
    ("CUSTOM without rules", policy("{action: CUSTOM, provider: {name: p}}"), "without rules never matches"),
    ("CUSTOM without provider", policy("{action: CUSTOM, rules: [{}]}"), "spec.provider.name: is missing"),
    ("provider without CUSTOM", policy("{provider: {name: p}}"), "belongs to action CUSTOM"),
    ("null rule", policy("{rules: [null]}"), "is null; write {} to match everything"),
    ("empty from", policy("{rules: [{from: []}]}"), "spec.rules[0].from: is empty"),
    ("empty to", policy("{rules: [{to: []}]}"), "spec.rules[0].to: is empty"),
    ("null from", policy("{rules: [{from: null}]}"), "spec.rules[0].from: is empty"),
    ("null source", policy("{rules: [{from: [{source: null}]}]}"), "is null; give at least one field"),
    ("empty source", source(""), "has no field"),
    ("empty operation", operation(""), "has no field"),
    ("empty list", source("principals: []"), "has no field"),
    ("empty value", source("principals: ['']"), "must not be empty"),
    ("accounts with namespaces", source("serviceAccounts: [a], namespaces: [b]"), "use two sources"),
    ("accounts with principals", source("notServiceAccounts: [a], principals: [b]"), "use two sources"),
    ("17 accounts", source(f"serviceAccounts: [{ELEVEN}]"), "lists more than 16"),
    ("wildcard account", source("serviceAccounts: ['a*']"), "wildcards are not allowed"),
    ("account slashes", source("serviceAccounts: [a/b/c]"), 'is not "name" or "namespace/name"'),
    ("long account", source(f"serviceAccounts: [{'a' * 321}]"), "longer than 320"),
    ("address block", source("ipBlocks: [10.0.0/8]"), "is not an IP address or CIDR"),
    ("trust domain slash", source("trustDomains: [a/b]"), 'must not contain "/"'),
    ("trust domain wildcard", source("trustDomains: [a*b]"), "first or the last"),
    ("port", operation("ports: ['70000']"), "is not a port number"),
    ("port text", operation("ports: [http]"), "is not a port number"),
    ("path rest first", operation("paths: ['/{**}/{*}']"), "must be the last operator"),
    ("path braces", operation("paths: ['/a{b}']"), "is not a valid path template"),
    ("path half", operation("paths: ['/x{*}']"), "is not a valid path template"),
    ("path mixed", operation("paths: ['/{*}/a*']"), "mixes a template"),
    ("condition key", when("key: 'destination.labels[a]', values: [b]"), "is not a known condition"),
    ("header key", when("key: 'request.headers[a', values: [b]"), "is not a known condition"),
    ("no values", when("key: source.ip"), "has neither values nor notValues"),
    ("condition address", when("key: source.ip, values: [x]"), "is not an IP address or CIDR"),
    ("condition port", when("key: destination.port, notValues: [x]"), "is not a port number"),
    ("CUSTOM principals", source("principals: [a]", "CUSTOM"), "cannot be used with action CUSTOM"),
    ("CUSTOM key", when("key: source.principal, values: [a]", "CUSTOM"), "cannot be used with action CUSTOM"),
    ("CUSTOM claims", when("key: 'request.auth.claims[a]', values: [a]", "CUSTOM"), "cannot be used"),
    ("dry run", policy("{}", "istio.io/dry-run: maybe"), 'must be "true" or "false"'),
    ("dry run AUDIT", policy("{action: AUDIT, rules: [{}]}", "istio.io/dry-run: 'true'"), "not possible"),
    ("selector wildcard", policy("{selector: {matchLabels: {a: 'b*'}}}"), "wildcards are not allowed"),
    ("selector field", policy("{selector: {labels: {a: b}}}"), "spec.selector.labels: unknown field"),
    # peer authentications
    ("mode", body("PeerAuthentication", "{mtls: {mode: strict}}"), "must be one of UNSET"),
    ("ports alone", body("PeerAuthentication", "{portLevelMtls: {80: {mode: STRICT}}}"), "needs a selector"),
    ("empty ports", body("PeerAuthentication", "{selector: {matchLabels: {a: b}}, portLevelMtls: {}}"), "is empty"),
    ("port 0", body("PeerAuthentication", "{selector: {matchLabels: {a: b}}, portLevelMtls: {0: {}}}"), "1 to 65535"),
    ("misspelt mode", body("PeerAuthentication", "{mtls: {mod: STRICT}}"), "spec.mtls.mod: unknown field"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_is_refused_says_where_and_what_to_do(text: str, message: str) -> None:
    loaded, found = load_text(text, "f.yaml")
    assert loaded == []
    (only,) = found
    assert message in str(only)
    assert str(only).startswith("f.yaml: document 1")
    assert "\n" not in str(only)


def test_an_error_names_file_document_object_and_field() -> None:
    text = GOOD + "---\n" + policy("{action: no}")
    assert errors(text, "shop.yaml") == [
        "shop.yaml: document 2: AuthorizationPolicy shop/x: spec.action: "
        'must be one of ALLOW, DENY, AUDIT, CUSTOM, not "no"'
    ]


def test_an_error_in_one_document_leaves_the_others() -> None:
    loaded, found = load_text(GOOD + "---\nkind: x\n---\n" + body("Pod", "{}"), "f.yaml")
    assert [one.key.kind for one in loaded] == ["Namespace", "Pod"]
    assert len(found) == 1


def test_a_syntax_error_leaves_the_documents_before_it() -> None:
    loaded, found = load_text(GOOD + "---\na: [1\n", "f.yaml")
    assert [one.key.name for one in loaded] == ["shop"]
    assert "document 2: not valid YAML" in str(found[0])


def test_the_same_object_twice_is_an_error_and_the_first_counts() -> None:
    loaded, found = load_text(GOOD + "---\n" + GOOD.replace("shop}", "shop, labels: {a: b}}"), "f.yaml")
    assert len(loaded) == 1
    assert not loaded[0].object.meta.labels
    assert "is also defined in f.yaml document 1, which is the one used; remove one" in str(found[0])


def test_an_alias_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    began = time.monotonic()
    assert "alias" in errors("\n".join(lines))[0]
    assert time.monotonic() - began < 1


def test_a_huge_file_is_refused_without_being_read(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_bytes(b"# x\n" * 2_600_000)
    (tmp_path / "good.yaml").write_text(GOOD)
    began = time.monotonic()
    loaded, found = load_folder(tmp_path)
    assert time.monotonic() - began < 1
    assert [one.key.name for one in loaded] == ["shop"]
    assert str(found[0]) == "big.yaml: 10400000 bytes is over the limit of 4194304; split the file"


def test_the_limit_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    assert "over the limit of 10" in str(load_folder(tmp_path, size_limit=10)[1][0])


def test_files_that_are_not_text_or_not_readable_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "b.yaml").mkdir()
    os.mkfifo(tmp_path / "c.yaml")
    (tmp_path / "d.yaml").symlink_to("nowhere")
    assert [str(error).partition(";")[0] for error in load_folder(tmp_path)[1]] == [
        "a.yaml: is not UTF-8 (byte 0)",
        "b.yaml: is not a regular file",
        "c.yaml: is not a regular file",
        "d.yaml: cannot be read: No such file or directory",
    ]


def test_which_files_of_a_folder_count(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yml", ".c.yaml", "_d.yaml", "e.txt"):
        (tmp_path / name).write_text(GOOD.replace("shop", f"x{name[0] if name[0].isalpha() else 'z'}"))
    (tmp_path / "f.json").write_text(
        json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "j"}})
    )
    assert [one.key.name for one in load_folder(tmp_path)[0]] == ["xa", "xb", "j"]


def test_json_with_a_key_twice_or_broken_is_refused() -> None:
    assert "given twice" in errors('{"a": 1, "a": 2}', "f.json")[0]
    assert "not valid JSON" in errors("{", "f.json")[0]
    assert (
        "nested deeper" in errors("[" * 200_000, "f.json")[0]
        or "not valid" in errors("[" * 200_000, "f.json")[0]
    )


def test_a_list_is_unpacked() -> None:
    text = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n"
    assert [one.key.name for one in load_text(text, "f.yaml")[0]] == ["a"]


def test_kinds_of_others_are_accepted() -> None:
    text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 2}\n"
    (loaded,), found = load_text(text, "f.yaml")
    assert not found
    assert loaded.key == ("Deployment", "default", "web")
    assert loaded.body["spec"] == {"replicas": 2}


def test_plain_scalars_are_read_as_kubernetes_reads_them() -> None:
    text = body(
        "Pod", "{containers: [{name: on, ports: [{containerPort: 0x50}]}]}", "name: x, labels: {a: yes}"
    )
    (loaded,), found = load_text(text, "f.yaml")
    assert not found
    assert isinstance(loaded.object, Pod)
    assert loaded.object.containers[0].ports[0].number == 80
    assert loaded.object.meta.labels == {"a": "yes"}


def test_a_date_stays_text() -> None:
    (loaded,), _ = load_text(body("Pod", "{}", "name: x, creationTimestamp: 2026-01-01T00:00:00Z"), "f.yaml")
    assert loaded.object.meta.created == "2026-01-01T00:00:00Z"


def test_a_policy_with_every_field_is_read() -> None:
    text = policy(
        """{action: DENY, selector: {matchLabels: {app: web}}, rules: [{
        from: [{source: {principals: [a], notPrincipals: [b], requestPrincipals: [c], notRequestPrincipals: [d],
          namespaces: [e], notNamespaces: [f], ipBlocks: [10.0.0.1], notIpBlocks: [10.0.0.0/8],
          remoteIpBlocks: [10.0.0.2], notRemoteIpBlocks: ['::1']}},
          {source: {serviceAccounts: [x, y/z], trustDomains: ['td*']}}],
        to: [{operation: {hosts: [h], notHosts: [i], ports: ['80', 81], notPorts: ['82'], methods: [GET],
          notMethods: [PUT], paths: ['/a*', '/{*}/b/{**}'], notPaths: [/c]}}],
        when: [{key: 'request.headers[x]', values: [y]}, {key: 'request.auth.claims[a][b]', notValues: [z]}]}]}"""
    )
    (loaded,), found = load_text(text, "f.yaml")
    assert not found
    policy_ = loaded.object
    assert isinstance(policy_, AuthorizationPolicy)
    assert policy_.selector == {"app": "web"}
    rule = policy_.rules[0]
    assert rule.sources[0].not_ip_blocks == ("10.0.0.0/8",)
    assert rule.sources[1].service_accounts == ("x", "y/z")
    assert rule.operations[0].ports == ("80", "81")
    assert [one.key for one in rule.conditions] == ["request.headers[x]", "request.auth.claims[a][b]"]


def test_a_peer_authentication_with_ports_is_read() -> None:
    text = body(
        "PeerAuthentication", "{selector: {matchLabels: {a: b}}, portLevelMtls: {8080: {mode: DISABLE}}}"
    )
    (loaded,), found = load_text(text, "f.yaml")
    assert not found
    assert isinstance(loaded.object, PeerAuthentication)
    assert loaded.object.mode is MtlsMode.UNSET
    assert loaded.object.port_modes == {8080: MtlsMode.DISABLE}


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_text_is_objects_or_errors_and_never_a_crash(text: str) -> None:
    load_text(text, "f.yaml")
    load_text(text, "f.json")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda v: st.lists(v) | st.dictionaries(st.text(max_size=5), v),
    max_leaves=8,
)
FIELDS = ["selector", "rules", "action", "targetRefs", "mtls", "portLevelMtls", "hosts", "ports", "endpoints", "address", "listeners", "containers", "gatewayClassName", "template", "metadata", "probe"]  # fmt: skip
KINDS = [
    "Pod",
    "Service",
    "AuthorizationPolicy",
    "PeerAuthentication",
    "ServiceEntry",
    "WorkloadEntry",
    "WorkloadGroup",
    "Gateway",
]


@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), VALUES), VALUES)
def test_any_spec_is_an_object_or_an_error_and_never_a_crash(kind: str, spec: object, status: object) -> None:
    version = documents(f"kind: {kind}").partition("\n")[0].partition(": ")[2]
    document = {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": "x"},
        "spec": spec,
        "status": status,
    }
    loaded, found = load_text(json.dumps(document), "f.json")
    assert len(loaded) + len(found) == 1
