"""Which pods of this node are in the mesh, and everything that stands for them.

In: requests to add and delete pods, from whoever runs them over ZDS (`zds`: Istio's CNI agent, the local mesh's
supervisor), or from own discovery (`discovery`: the Kubernetes API and the node's processes); `source` runs the one
that `choice` says. Out: for each pod a captured network namespace, listeners in the engine, a certificate on its way
(`pods`). Pure: `membership`, `settings` (what labels and annotations ask for), `steps` (a pod's way in and out),
`nodepods`, `podcgroups`, `netchoice`, `roster` (own discovery's decisions), `choice`.
"""
