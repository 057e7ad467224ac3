"""Addresses of service entries without any: Istio's pools, the same every time, never twice."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable

import pytest

from istiodlite.objects import Meta, ServiceEntry
from istiodlite.registry import allocation
from istiodlite.registry.allocation import V4_POOL, V6_POOL, Allocated, allocate
from tests.unit.istiodlite.mesh import Mesh


def entry(
    name: str,
    *hosts: str,
    created: str = "2026",
    resolution: str = "DNS",
    addresses: tuple[str, ...] = (),
    allocated: tuple[tuple[str, str], ...] = (),
    labels: dict[str, str] | None = None,
) -> ServiceEntry:
    return ServiceEntry(
        Meta(name, "shop", labels=labels or {}, created=created),
        hosts or ("a.example.com",),
        addresses=addresses,
        resolution=resolution,
        allocated=allocated,
    )


def everything(found: Allocated) -> list[str]:
    return [text for hosts in found.values() for addresses in hosts.values() for text in addresses]


def one(found: Allocated, name: str, host: str = "a.example.com") -> tuple[str, ...]:
    return found["shop", name][host]


def shuffled(entries: Iterable[ServiceEntry]) -> list[ServiceEntry]:
    out = list(entries)
    random.Random(7).shuffle(out)
    return out


def test_a_host_gets_one_address_of_each_family_from_istios_pools() -> None:
    v4, v6 = one(allocate([entry("e")]), "e")
    assert ipaddress.ip_address(v4) in V4_POOL
    assert ipaddress.ip_address(v6) in V6_POOL


def test_every_host_of_every_entry_has_its_own_whatever_the_order() -> None:
    entries = [entry(f"e{n}", f"a{n}.example.com", f"b{n}.example.com") for n in range(2000)]
    found = allocate(entries)
    assert len(set(everything(found))) == len(everything(found)) == 8000
    assert allocate(shuffled(entries)) == found


def test_an_address_does_not_depend_on_entries_that_do_not_collide() -> None:
    alone = one(allocate([entry("e")]), "e")
    assert one(allocate([entry("e"), entry("other", "b.example.com")]), "e") == alone


def test_the_younger_of_two_that_meet_goes_on_to_the_next_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "_SIZES", ((ipaddress.ip_network("240.240.0.0/30"), 2),))
    old, young = entry("z-old", created="2020"), entry("a-young", created="2021")
    found = allocate([young, old])
    assert one(found, "z-old") == one(allocate([old]), "z-old")
    assert {*one(found, "z-old"), *one(found, "a-young")} == {"240.240.0.1", "240.240.0.2"}
    third = allocate([young, old, entry("third", created="2022")])
    assert one(third, "third") == (), "a pool that is used up gives nothing, and takes from nobody"
    assert one(third, "z-old") == one(found, "z-old")


def test_what_was_allocated_before_is_kept_and_given_to_nobody_else() -> None:
    (mine, _) = one(allocate([entry("e")]), "e")
    thief = entry("thief", "b.example.com", created="2030", allocated=((mine, "b.example.com"),))
    found = allocate([entry("e"), thief])
    assert one(found, "thief", "b.example.com") == (mine,)
    assert mine not in one(found, "e")


def test_of_two_with_the_same_address_in_their_status_the_younger_gets_another() -> None:
    status = (("240.240.9.9", "a.example.com"),)
    found = allocate(
        [entry("young", created="2", allocated=status), entry("old", created="1", allocated=status)]
    )
    assert one(found, "old") == ("240.240.9.9",)
    assert "240.240.9.9" not in one(found, "young")


def test_addresses_that_users_gave_are_not_given_away() -> None:
    (mine, _) = one(allocate([entry("e")]), "e")
    found = allocate([entry("e"), entry("user", addresses=(mine,), created="2030")])
    assert mine not in one(found, "e")
    assert ("shop", "user") not in found


@pytest.mark.parametrize(
    "without",
    [
        entry("e", resolution="NONE"),
        entry("e", labels={"networking.istio.io/enable-autoallocate-ip": "false"}),
        entry("e", "*.example.com"),
        entry("e", addresses=("10.0.0.0/24",)),
    ],
)
def test_entries_that_get_none(without: ServiceEntry) -> None:
    assert allocate([without]) == {}


def test_wildcards_get_one_where_the_name_is_resolved_per_connection() -> None:
    assert (
        len(one(allocate([entry("e", "*.example.com", resolution="DYNAMIC_DNS")]), "e", "*.example.com")) == 2
    )


def _text(name: str, created: str, status: str = "") -> str:
    return (
        f"kind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop, creationTimestamp: '{created}'}}\n"
        f"spec: {{hosts: [{name}.example.com], resolution: DNS, ports: [{{number: 80, name: http}}]}}\n{status}"
    )


def test_services_carry_their_addresses_and_follow_when_an_older_entry_claims_one() -> None:
    mesh = Mesh(_text("a", "2026"))
    (v4, v6) = [ipaddress.ip_address(x.address) for x in mesh.services["shop/a.example.com"].addresses]
    assert (v4 in V4_POOL, v6 in V6_POOL) == (True, True)
    status = f"status: {{addresses: [{{value: {v4}, host: b.example.com}}]}}\n"
    assert mesh.apply(_text("b", "2020", status)) == {
        "shop/a.example.com",
        "shop/b.example.com",
        "Kubernetes/networking.istio.io/ServiceEntry/shop/b/b.example.com",
    }
    assert mesh.services["shop/a.example.com"].addresses[0].address != v4.packed
    mesh.remove("ServiceEntry", "shop", "b")
    assert mesh.services["shop/a.example.com"].addresses[0].address == v4.packed
