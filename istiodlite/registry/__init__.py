"""Objects to resources: who is where (WDS) and who may (authorizations). Pure.

In: batches of `istiodlite.objects`. Out: `Changes` with serialised, content-versioned `Resource`s.
Facts of the conversion are Istio's (workload.proto, authorization.proto and what istiod fills in).
"""

from istiodlite.registry.config import MeshConfig
from istiodlite.registry.registry import Changes, Registry
from istiodlite.registry.resource import ADDRESS_TYPE, AUTHORIZATION_TYPE, Condition, Resource

__all__ = [
    "ADDRESS_TYPE",
    "AUTHORIZATION_TYPE",
    "Changes",
    "Condition",
    "MeshConfig",
    "Registry",
    "Resource",
]
