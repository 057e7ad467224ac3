"""A policy written for one name of the trust domain holds for all of them, as Istio documents it."""

from __future__ import annotations

import pytest
import yaml

from istiodlite.manifests.errors import FieldError
from istiodlite.manifests.fields import Field
from istiodlite.manifests.mesh import parse_mesh
from istiodlite.registry import MeshConfig
from tests.unit.istiodlite.mesh import Mesh

REST = "ns/a/sa/x"
CONFIG = MeshConfig(trust_domain="new-td", trust_domain_aliases=("old-td", "older"))


def principals(spec: str, config: MeshConfig) -> list[str]:
    """All principals of the policy that agents get, with a mark for those negated."""
    mesh = Mesh(
        f"kind: AuthorizationPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {spec}", config=config
    )
    out = []
    for group in mesh.policies["a/p"].groups:
        for rules in group.rules:
            for match in rules.matches:
                out += [one.exact or f"*{one.suffix}" for one in match.principals]
                out += [f"not {one.exact}" for one in match.not_principals]
    return out


def rule(principal: str) -> str:
    return f"{{rules: [{{from: [{{source: {{principals: ['{principal}']}}}}]}}]}}"


ALL = [f"new-td/{REST}", f"old-td/{REST}", f"older/{REST}"]
ROWS = [
    (f"new-td/{REST}", ALL),
    (f"old-td/{REST}", ALL),
    (f"cluster.local/{REST}", ALL),
    (f"foreign/{REST}", [f"foreign/{REST}"]),
    (f"*-td/{REST}", [f"*-td/{REST}", f"older/{REST}"]),
    (f"*/{REST}", [f"*/{REST}"]),
    ("*/sa/x", ["*/sa/x"]),
]


@pytest.mark.parametrize(("written", "told"), ROWS)
def test_a_principal_is_told_under_all_names(written: str, told: list[str]) -> None:
    assert principals(rule(written), CONFIG) == told


def test_negations_and_conditions_too() -> None:
    negated = f"{{action: DENY, rules: [{{from: [{{source: {{notPrincipals: [old-td/{REST}]}}}}]}}]}}"
    assert principals(negated, CONFIG) == [f"not {one}" for one in ALL]
    when = f"{{rules: [{{when: [{{key: source.principal, values: [old-td/{REST}]}}]}}]}}"
    assert principals(when, CONFIG) == ALL
    when = f"{{rules: [{{when: [{{key: source.principal, notValues: [old-td/{REST}]}}]}}]}}"
    assert principals(when, CONFIG) == [f"not {one}" for one in ALL]


def test_cluster_local_stands_for_the_meshs_own() -> None:
    assert principals(rule(f"cluster.local/{REST}"), MeshConfig(trust_domain="td")) == [f"td/{REST}"]
    assert principals(rule(f"td/{REST}"), MeshConfig()) == [f"td/{REST}"]


def test_the_aliases_are_read_from_the_mesh_config() -> None:
    text = "trustDomain: new-td\ntrustDomainAliases: [old-td, older]"
    config, others = parse_mesh(Field(yaml.safe_load(text)), MeshConfig())
    assert (config, others) == (CONFIG, [])
    with pytest.raises(FieldError, match="trustDomainAliases"):
        parse_mesh(Field({"trustDomainAliases": "old-td"}), MeshConfig())
