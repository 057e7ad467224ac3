"""`make demo`: a local mesh of two nodes, and ten checks on real traffic.

Every check is an observation made then and there, with the tools a user has: `ambientctl`, curl in a pod,
tcpdump on the link between the nodes, the agents' access logs and metrics. Nothing is imported from the
agent or the control plane, so the demo cannot agree with them by sharing their mistakes.
"""
