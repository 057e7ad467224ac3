"""What is wrong with a set of manifests before they are applied, and what will not do what it says. Pure.

In: objects with their documents (Deployments count by their pod templates). Out: `Finding`s. The meaning of policies
is that of the registry and the node agents, so a finding speaks of what will happen, not of style. Without any
workload among the manifests nothing can be said about who is selected or named, and those checks are left out.
"""

from istiodlite.analyze.check import CODES, analyze
from istiodlite.analyze.findings import Finding, Severity
from istiodlite.analyze.flows import BadMetrics, PlainFlow, plain_flows
from istiodlite.analyze.mesh import Input, Mesh

__all__ = [
    "CODES",
    "BadMetrics",
    "Finding",
    "Input",
    "Mesh",
    "PlainFlow",
    "Severity",
    "analyze",
    "plain_flows",
]
