"""Capture of enrolled pods' TCP connections by eBPF, without iptables.

In: a pod's network namespace, its addresses, the node's addresses, exempt ports (`PodNetwork`).
Out: three listening sockets inside that namespace (`EnrolledPod`) which receive the pod's outbound
connections, its plaintext inbound connections and its HBONE connections. On an accepted socket
`getsockname()` is the original destination and `getpeername()` the true client; nothing is rewritten.

`ebpf.capture.Capture` is the way in; `ebpf.marks` holds the socket mark for onward connections.
"""
