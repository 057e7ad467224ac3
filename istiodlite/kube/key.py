"""What an object is known by. Pure."""

from typing import NamedTuple


class ObjectKey(NamedTuple):
    """Identity of an object. `namespace` is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"
