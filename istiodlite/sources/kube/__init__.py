"""Objects straight from a Kubernetes API server, by list and watch (`kube`).

In: a client. Out: `Batch`es like those of a folder, the first one only when every kind was listed. Pure: `kinds`
(what is watched), `reading` (JSON to objects). Shell: `source` (all kinds).
"""

from istiodlite.sources.kube.source import KubeSource

__all__ = ["KubeSource"]
