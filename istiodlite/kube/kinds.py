"""What is watched, and where the API server has it. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WatchedKind:
    """One kind. `versions` are tried in order (all have the fields we read). `selector` is a field selector that
    narrows the watch (`metadata.name=x`), empty for all. `optional`: comes with a CRD that a cluster need not have."""

    kind: str
    group: str
    versions: tuple[str, ...]
    plural: str
    optional: bool = False
    namespaced: bool = True
    selector: str = ""

    def path(self, version: str) -> str:
        """The collection over all namespaces."""
        root = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        return f"{root}/{self.plural}"

    @property
    def resource(self) -> str:
        """As kubectl and RBAC name it: `pods`, `gateways.gateway.networking.k8s.io`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural
