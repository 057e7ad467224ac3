"""Principals of policies under every name of the mesh's trust domain: MeshConfig.trustDomainAliases. Pure.

A policy written for one of the names holds for all of them, so a mesh can change its trust domain without changing its
policies. `cluster.local` always stands for the mesh's own. (Istio's security documentation, "Trust Domain Migration")
"""

from collections.abc import Iterable, Iterator, Sequence

from istiodlite.registry.config import DEFAULT_TRUST_DOMAIN, MeshConfig

ANY = "*"


def named_domain(principal: str) -> str | None:
    """The trust domain of TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT; None where any will do or the form is another."""
    parts = principal.split("/")
    return parts[0] if len(parts) == 5 and parts[0] != ANY else None


def is_ours(domain: str, config: MeshConfig) -> bool:
    """Whether a trust domain, perhaps `*suffix`, is one of the mesh's names."""
    return domain == DEFAULT_TRUST_DOMAIN or any(_matches(domain, one) for one in config.trust_domains)


def under_all_names(principals: Iterable[str], config: MeshConfig) -> Sequence[str]:
    """The principals in their order, each that is of the mesh under all names of its trust domain."""
    if config.trust_domains == (DEFAULT_TRUST_DOMAIN,):
        return tuple(principals)
    return tuple(dict.fromkeys(name for one in principals for name in _names(one, config)))


def _names(principal: str, config: MeshConfig) -> Iterator[str]:
    domain = named_domain(principal)
    if domain is None or not is_ours(domain, config):
        yield principal
        return
    rest = principal.removeprefix(domain)
    for one in config.trust_domains:
        yield principal if _matches(domain, one) else one + rest


def _matches(pattern: str, domain: str) -> bool:
    return domain.endswith(pattern[1:]) if pattern.startswith("*") else domain == pattern
