"""What a ServiceEntry's status says when it needs a waypoint and has none: condition istio.io/WaypointMissing. Pure."""

from istiodlite.objects import ObjectKey, ServiceEntry
from istiodlite.registry.resource import Condition
from istiodlite.registry.waypoints import Attachment

CONDITION = "istio.io/WaypointMissing"
_STRATEGY = "istio.io/connect-strategy"
_RACING = "race_first_tcp_connect"


def condition(key: ObjectKey, entry: ServiceEntry, attachment: Attachment) -> Condition | None:
    """For wildcard hosts, which only a waypoint resolves, and for a connect strategy, which only a waypoint has; the
    reasons are Istio's."""
    if attachment.address is not None:
        return None
    if entry.meta.annotations.get(_STRATEGY, "").lower() == _RACING:
        message = "the connect strategy counts for traffic through a waypoint only; bind the entry to one"
        return Condition(key, CONDITION, True, "NoWaypointForRacingConnectStrategy", message)
    if any(host.startswith("*") for host in entry.hosts):
        message = "wildcard hosts are resolved by a waypoint only; bind the entry to one"
        return Condition(key, CONDITION, True, "NoWaypointForWildcardService", message)
    return None
