"""The direct path between pods of this node: plain TCP in the kernel where the mesh setting permits it.

In: the snapshot, its changes, the enrolled pods. Out: the kernel's pairs (plan decides which, keeper writes
them), and for every direct connection the same flows, metrics and log lines as for a relayed one. See
docs/direct-path.md.
"""
