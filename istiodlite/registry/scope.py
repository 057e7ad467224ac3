"""Only what lies in the namespaces that MeshConfig.discoverySelectors choose reaches the registry. Pure.

Objects of other namespaces are kept aside: a label is enough to bring a namespace in or take it out. The root namespace
is always in (istiod leaves it out like any other, and with it the policies of the whole mesh).
"""

from collections.abc import Mapping, Sequence

from istiodlite.objects import KubeObject, LabelSelector, Namespace, ObjectKey

Batch = Mapping[ObjectKey, KubeObject | None]


class Scope:
    """`narrow` turns batches of everything into batches of what is in."""

    def __init__(self, selectors: Sequence[LabelSelector], root_namespace: str) -> None:
        self._selectors, self._root = tuple(selectors), root_namespace
        self._inside: set[str] = {root_namespace}
        self._objects: dict[str, dict[ObjectKey, KubeObject]] = {}

    def narrow(self, batch: Batch) -> dict[ObjectKey, KubeObject | None]:
        """The same batch where there are no selectors."""
        if not self._selectors:
            return dict(batch)
        out: dict[ObjectKey, KubeObject | None] = {}
        for key, obj in batch.items():
            self._keep(key, obj)
            if not key.namespace or key.namespace in self._inside:
                out[key] = obj
        for key, obj in batch.items():
            if key.kind == "Namespace":
                out.update(self._moved(key.name, obj))
        return out

    def _keep(self, key: ObjectKey, obj: KubeObject | None) -> None:
        if not key.namespace:
            return
        objects = self._objects.setdefault(key.namespace, {})
        if obj is not None:
            objects[key] = obj
            return
        objects.pop(key, None)
        if not objects:
            del self._objects[key.namespace]

    def _moved(self, name: str, namespace: KubeObject | None) -> Batch:
        """What comes in or goes out with a namespace."""
        wanted = name == self._root or (
            isinstance(namespace, Namespace)
            and any(one.matches(namespace.meta.labels) for one in self._selectors)
        )
        if wanted == (name in self._inside):
            return {}
        objects = self._objects.get(name, {})
        if wanted:
            self._inside.add(name)
            return dict(objects)
        self._inside.discard(name)
        return dict.fromkeys(objects)
