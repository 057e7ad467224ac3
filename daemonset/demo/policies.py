"""The manifests that the demo's checks write into the folder, one file each."""

from pathlib import Path

NOT_ENROLLED = (Path(__file__).parent / "mesh" / "10-namespaces.yaml").read_text()

ENROLLED = """\
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  labels:
    istio.io/dataplane-mode: ambient
---
apiVersion: v1
kind: Namespace
metadata:
  name: outside
"""

STRICT = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: shop
spec:
  mtls:
    mode: STRICT
"""


def allow(name: str, app: str, *accounts: str) -> str:
    """An ALLOW policy: the service accounts of namespace `shop` that may call the pods of `app`."""
    principals = "".join(f'\n              - "cluster.local/ns/shop/sa/{account}"' for account in accounts)
    return f"""\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: {name}
  namespace: shop
spec:
  selector:
    matchLabels:
      app: {app}
  action: ALLOW
  rules:
    - from:
        - source:
            principals:{principals}
"""
