"""Benchmarks: `python -m tests.bench` measures variants against each other and writes build/bench/GROUP.json.

In: the tree as it is built, gcc, root (network namespaces named albench-*). Out: one JSON document for each group
(format: `tests.bench.results`), a table on stdout, and by `python -m tests.bench.render` the tables of the docs.

What makes the figures comparable, and nothing else does:
variants are interleaved round by round in alternating order, with fresh processes for each figure, in a network
namespace of their own (no firewall, no connection tracking, reno); every proxy process's CPU time is counted; the
CPU time that strangers took meanwhile is written beside each figure; and figures of different runs are never compared.

Groups: `hbone` (the data plane of two nodes on one loopback against no proxy, plain relays, Envoy, ztunnel),
`hbone-one` (one request at a time, longer), `hbone-openssl35` (its bulk with OpenSSL 3.5 in the engine), `capture` (what capturing costs; pods of one node directly
and through proxies),
`mesh` (pods of the local mesh on two nodes, enrolled against not enrolled), `control` (control plane and node agent
with 50,000 workloads), `upgrade` (agents replaced and killed under load) and `enrol` (pods that come and go).
"""
