"""The Kubernetes API: credentials, HTTP, and copies of kinds by list and watch. Used by control plane and node agent.

In: an `Access` (where the server is, and as whom) and a `WatchedKind`. Out: changes, after a first whole list.
Pure: `key`, `kinds` (what is watched), `reflector` (when to list, watch and wait), `reading` (what a body is
read into), `collection` (what one kind holds), `health` (how old it may be). Shells: `access` and `kubeconfig`
(credentials), `client` (HTTP), `watcher` (one kind).
"""

from istiodlite.kube.access import Access, AccessError
from istiodlite.kube.client import ApiError, KubeClient
from istiodlite.kube.key import ObjectKey
from istiodlite.kube.kinds import WatchedKind
from istiodlite.kube.kubeconfig import find_access
from istiodlite.kube.reading import Garbled, Reading, Unusable
from istiodlite.kube.watcher import Watcher

__all__ = [
    "Access",
    "AccessError",
    "ApiError",
    "Garbled",
    "KubeClient",
    "ObjectKey",
    "Reading",
    "Unusable",
    "WatchedKind",
    "Watcher",
    "find_access",
]
