"""A stream's node has to be who its token says."""

from __future__ import annotations

import pytest

from istiodlite.api import discovery_pb2
from istiodlite.ca.caller import Caller
from istiodlite.xds.identity import check_node

ZTUNNEL = Caller("istio-system", "ztunnel", "ztunnel-n1", "uid", "n1")


@pytest.mark.parametrize(
    ("node", "account", "refusal"),
    [
        ("ztunnel~10.0.0.1~ztunnel-n1.istio-system~istio-system.svc.cluster.local", "", ""),
        ("ztunnel~10.0.0.1~ztunnel-n1.istio-system~istio-system.svc.cluster.local", "ztunnel", ""),
        ("waypoint~10.0.0.1~wp.with.dots.istio-system~istio-system.svc.cluster.local", "", ""),
        ("ztunnel~10.0.0.1~ztunnel-n1.istio-system~istio-system.svc.cluster.local", "other", "account"),
        ("ztunnel~10.0.0.1~web.shop~shop.svc.cluster.local", "", "namespace"),
        ("ztunnel~10.0.0.1~nodots~shop.svc.cluster.local", "", "namespace"),
        ("spaceship~10.0.0.1~a.istio-system~x", "", "is not TYPE"),
        ("ztunnel~10.0.0.1", "", "is not TYPE"),
        ("", "", "is not TYPE"),
    ],
)
def test_the_node_of_a_stream(node: str, account: str, refusal: str) -> None:
    message = discovery_pb2.Node(id=node)
    if account:
        message.metadata.update({"SERVICE_ACCOUNT": account})
    said = check_node(message, ZTUNNEL)
    assert refusal in said
    assert bool(said) == bool(refusal)
