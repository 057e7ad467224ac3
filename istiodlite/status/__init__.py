"""What the control plane says of an object in the object's own status: conditions and allocated addresses.

Under Istio's types and reasons, so that `kubectl describe`, `istioctl` and dashboards find them where they look.
"""

from istiodlite.status.plan import PLURALS, Present, Wanted, merged, read_present
from istiodlite.status.writer import StatusWriter

__all__ = ["PLURALS", "Present", "StatusWriter", "Wanted", "merged", "read_present"]
