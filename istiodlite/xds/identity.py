"""Does a node say who its token says it is? Pure."""

from istiodlite.api import discovery_pb2
from istiodlite.ca.caller import Caller

_TYPES = ("sidecar", "router", "waypoint", "ztunnel", "agentgateway")


def check_node(node: discovery_pb2.Node, caller: Caller) -> str:
    """Empty if the node may go on, else why not.

    node.id is TYPE~IP~NAME.NAMESPACE~NAMESPACE.svc.DOMAIN.
    """
    parts = node.id.split("~")
    if len(parts) != 4 or parts[0] not in _TYPES:
        return f'node id "{node.id[:100]}" is not TYPE~IP~NAME.NAMESPACE~DOMAIN'
    name, _, namespace = parts[2].rpartition(".")
    if not name or namespace != caller.namespace:
        return f'node is of namespace "{namespace[:100]}", its token of "{caller.namespace}"'
    fields = node.metadata.fields
    account = fields["SERVICE_ACCOUNT"].string_value if "SERVICE_ACCOUNT" in fields else ""
    if account and account != caller.service_account:
        return f'node says service account "{account[:100]}", its token "{caller.service_account}"'
    return ""
