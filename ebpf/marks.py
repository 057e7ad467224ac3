"""Socket marks and routing numbers used inside a pod's network namespace.

A mark never leaves the pod: the kernel clears it when a packet crosses to another namespace.
"""

from __future__ import annotations

from typing import Final

LOOP_MARK: Final = 0x1000
"""Bit that the connect hook sets; the pod's policy rule sends packets that carry it to `lo`."""

LOOP_MASK: Final = LOOP_MARK

ASIDE_MARK: Final = 0x2000
"""Bit of UDP sockets whose questions to name servers go straight there: the agent's own, and those that are
connected while no agent listens."""

ONWARD_MARK: Final = LOOP_MARK
"""SO_MARK of the agent's connection to the pod's own application under the client's address.

Recipe: IP_TRANSPARENT or IPV6_TRANSPARENT, bind(client address, 0), SO_BINDTODEVICE=lo, SO_MARK=ONWARD_MARK.
Bound to `lo` the route look-up skips the local table's entry for the pod's address, the mark leads to the
loop route, the connection arrives on `lo` and the steering program leaves it to the application.
"""

AGENT_MARK: Final = 0x8000
"""Bit on the agent's own sockets in a pod, listeners included, where no connect hook knows it by its process
(variant C): what carries it is not looped."""

ROUTE_TABLE: Final = 15001
"""Routing table that holds the loop routes."""

RULE_PRIORITY: Final = 100
"""Behind the local table (0), before any routing of the pod's own (32766)."""

DNS_RULE_PRIORITY: Final = 101
"""Of the rule that sends UDP to port 53 to `lo`."""
