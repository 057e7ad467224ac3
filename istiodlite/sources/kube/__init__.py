"""Objects straight from a Kubernetes API server, by list and watch.

In: an `Access` (where the server is, and as whom). Out: `Batch`es like those of a folder, the first one only
when every kind was listed. Pure: `kinds` (what is watched), `reflector` (when to list, watch and wait),
`reading` (JSON to objects), `collection` (what one kind holds), `health` (how old it may be). Shells: `access`
and `kubeconfig` (credentials), `client` (HTTP), `watcher` (one kind), `source` (all of them).
"""

from istiodlite.sources.kube.access import Access, AccessError
from istiodlite.sources.kube.client import ApiError, KubeClient
from istiodlite.sources.kube.kubeconfig import find_access
from istiodlite.sources.kube.source import KubeSource

__all__ = ["Access", "AccessError", "ApiError", "KubeClient", "KubeSource", "find_access"]
