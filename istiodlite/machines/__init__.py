"""Machines outside of the cluster that register themselves: WorkloadEntries made of WorkloadGroups.

In: nodes of xDS streams whose metadata names a group (AUTO_REGISTER_GROUP) or an entry (WORKLOAD_ENTRY), their health
reports, the ends of their streams. Out: WorkloadEntries made, marked, given a condition and removed, as istiod does it.
`machine` is pure; `registrar` does it, in the main thread.
"""

from istiodlite.machines.machine import HEALTH_TYPE, Machine, machine_of
from istiodlite.machines.registrar import Registrar

__all__ = ["HEALTH_TYPE", "Machine", "Registrar", "machine_of"]
