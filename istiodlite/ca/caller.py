"""Who speaks: the service account behind a bearer token. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a token speaks for. Pod and node are empty for tokens that are not bound to a pod."""

    namespace: str
    service_account: str
    pod: str = ""
    pod_uid: str = ""
    node: str = ""

    def __str__(self) -> str:
        bound = f" (pod {self.pod} on {self.node or '?'})" if self.pod else ""
        return f"{self.namespace}/{self.service_account}{bound}"
