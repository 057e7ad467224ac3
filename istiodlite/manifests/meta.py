"""metadata of every kind."""

from collections.abc import Mapping
from functools import lru_cache
from sys import intern

from istiodlite.manifests.fields import Field, is_dns_label, is_dns_name, shown
from istiodlite.objects import Meta, OwnerRef


def parse_name(meta: Field) -> str:
    """metadata.name, or for pods made by hand a generateName is not enough: a name is demanded."""
    field = meta["name"]
    name = field.text()
    # Names of RBAC-like kinds allow more; every kind read here is a DNS subdomain.
    if not is_dns_name(name):
        field.fail(f"{shown(name)} is not a valid name; use a-z, 0-9, '-' and '.'")
    return name


def parse_namespace(meta: Field, namespaced: bool) -> str:
    """metadata.namespace; absent means `default` for namespaced kinds, empty for cluster-scoped ones."""
    if not namespaced:
        return ""
    field = meta["namespace"]
    namespace = field.text("") or "default"
    if not is_dns_label(namespace):
        field.fail(f"{shown(namespace)} is not a valid namespace; use a-z, 0-9 and '-'")
    return namespace


@lru_cache(maxsize=4096)
def _shared(items: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    """One map for all who have the same: replicas differ in their names, not in their labels."""
    return {intern(key): intern(value) for key, value in items}


@lru_cache(maxsize=4096)
def _owners(owners: tuple[OwnerRef, ...]) -> tuple[OwnerRef, ...]:
    return owners


def parse_meta(meta: Field, namespaced: bool) -> Meta:
    owners = tuple(
        OwnerRef(
            kind=owner["kind"].text(""), name=owner["name"].text(""), controller=owner["controller"].boolean()
        )
        for owner in meta["ownerReferences"].items()
    )
    return Meta(
        name=parse_name(meta),
        namespace=intern(parse_namespace(meta, namespaced)),
        uid=meta["uid"].text(""),
        labels=_shared(tuple(meta["labels"].labels().items())),
        annotations=_shared(tuple(meta["annotations"].text_map().items())),
        created=meta["creationTimestamp"].text(""),
        deleting=meta["deletionTimestamp"].present,
        generate_name=intern(meta["generateName"].text("")),
        owners=_owners(owners),
    )
