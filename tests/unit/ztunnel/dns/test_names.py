"""What a name may stand for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.dns.names import Candidate, candidates, wildcards

DOMAIN = "cluster.local"
LABELS = st.lists(st.sampled_from(["a", "web", "svc", "shop", "cluster", "local"]), min_size=1, max_size=8)


def plain(name: str) -> list[str]:
    return [each.host for each in candidates(name, "shop", DOMAIN) if not each.is_stripped]


def stripped(name: str) -> list[str]:
    return [each.host for each in candidates(name, "shop", DOMAIN) if each.is_stripped]


@pytest.mark.parametrize(
    ("name", "hosts"),
    [
        ("web", ["web", "web.shop.svc.cluster.local"]),
        ("web.bar", ["web.bar", "web.bar.svc.cluster.local", "web.bar.shop.svc.cluster.local"]),
        ("web.bar.svc", ["web.bar.svc", "web.bar.svc.cluster.local", "web.bar.svc.svc.cluster.local"]),
        ("a.web.bar", ["a.web.bar", "a.web.bar.svc.cluster.local"]),
        ("a.web.bar.svc", ["a.web.bar.svc", "a.web.bar.svc.cluster.local"]),
        ("a.b.c.d", ["a.b.c.d"]),
        ("web.bar.svc.cluster.local", ["web.bar.svc.cluster.local"]),
    ],
)
def test_short_names_are_completed_as_kubernetes_does(name: str, hosts: list[str]) -> None:
    assert plain(name) == hosts


def test_search_domains_come_off_longest_first() -> None:
    assert stripped("api.example.com.shop.svc.cluster.local")[0] == "api.example.com"
    assert stripped("api.example.com.svc.cluster.local")[0] == "api.example.com"
    assert stripped("api.example.com.cluster.local")[0] == "api.example.com"


@pytest.mark.parametrize(
    "name", ["xshop.svc.cluster.local.example", "cluster.local", "a.notcluster.local", ""]
)
def test_what_does_not_end_in_a_search_domain_is_not_stripped(name: str) -> None:
    assert stripped(name) == []


@settings(deadline=None)
@given(LABELS)
def test_name_itself_comes_first_and_candidates_are_few(labels: list[str]) -> None:
    found = list(candidates(".".join(labels), "shop", DOMAIN))
    assert found[0] == Candidate(".".join(labels))
    assert len(found) <= 12
    assert all(each.host and not each.host.startswith(".") for each in found)


def test_wildcards_go_from_the_most_specific_to_the_last_label() -> None:
    assert list(wildcards("a.b.example.com")) == ["*.b.example.com", "*.example.com", "*.com"]
    assert list(wildcards("web")) == []
