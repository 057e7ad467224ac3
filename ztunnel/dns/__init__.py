"""Names for enrolled pods: what the mesh knows is answered here, everything else by whom the pod asked.

Pure: `names` (what a name may stand for), `lookup` (what the snapshot has under it), `wire` (messages),
`budget`. Shells: `server` (a pod's questions), `upstream` (the name server's answers). Rules as Istio's ztunnel
has them; where this differs, docs/dns.md says so.
"""
