"""The selector-scoped policies of one workload: authorization and identity strictness."""

from collections.abc import Mapping

from istiodlite.objects import AuthorizationPolicy
from istiodlite.registry import peer_authentication
from istiodlite.registry.authorization import is_sent
from istiodlite.registry.world import View


def applied_policies(view: View, namespace: str, labels: Mapping[str, str]) -> list[str]:
    """`namespace/name`: authorization policies in order of their names, then the strictness.

    Policies of namespace and mesh scope are matched by the agents themselves.
    """
    out = set()
    for place in {namespace, view.config.root_namespace}:
        for policy in view.selecting(AuthorizationPolicy, place, labels):
            if policy.selector and is_sent(policy):
                out.add(f"{policy.meta.namespace}/{policy.meta.name}")
    return [*sorted(out), *peer_authentication.applied(view, namespace, labels)]
