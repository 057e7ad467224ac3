"""What a name that a pod asks for may stand for. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Candidate", "candidates", "search_domains", "wildcards"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A host name to look for. `is_stripped`: a search domain was taken off the name asked for."""

    host: str
    is_stripped: bool = False


def search_domains(namespace: str, domain: str) -> tuple[str, ...]:
    """What Kubernetes gives a pod to search, longest first."""
    return f"{namespace}.svc.{domain}", f"svc.{domain}", domain


def candidates(name: str, namespace: str, domain: str) -> Iterator[Candidate]:
    """Host names for `name` (lower case, no final dot), best first, as asked by a pod of `namespace`.

    The name itself, and what Kubernetes would complete it to; then the same again for what is left when a
    search domain is taken off: resolvers try those first, for every name with few dots (ndots).
    """
    yield from (Candidate(host) for host in _completed(name, namespace, domain))
    for search in search_domains(namespace, domain):
        rest = name.removesuffix(f".{search}")
        if rest != name and rest:
            yield from (Candidate(host, True) for host in _completed(rest, namespace, domain))


def wildcards(host: str) -> Iterator[str]:
    """`*.b.c`, `*.c` for `a.b.c`: the most specific first."""
    while "." in host:
        host = host.partition(".")[2]
        yield f"*.{host}"


def _completed(name: str, namespace: str, domain: str) -> Iterator[str]:
    labels = name.split(".")
    yield name
    match len(labels):
        case 1:
            yield f"{name}.{namespace}.svc.{domain}"
        case 2:
            yield f"{name}.svc.{domain}"
            yield f"{name}.{namespace}.svc.{domain}"
        case 3:
            if labels[-1] == "svc":
                yield f"{name}.{domain}"
            yield f"{name}.svc.{domain}"
        case 4 if labels[-1] == "svc":
            yield f"{name}.{domain}"
