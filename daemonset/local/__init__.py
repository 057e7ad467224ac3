"""The local mesh: nodes and pods of ordinary manifests as network namespaces and cgroups of one machine.

In: Kubernetes objects (plain dictionaries, read by `manifests`). Out: namespaces, links, routes, name
service and ClusterIPs (`network`, `ruleset`, `dnsnames`), processes (`kubelet`, `service`), enrolment
messages for the node's agent (`zds`), and the folder of objects that the control plane watches
(`render`, `folder`).

One supervisor process per mesh plays scheduler, kubelet and CNI (`supervisor`). What is to be done is
decided by pure functions (`desired`, `schedule`, `plan`, `endpoints`, `addresses`); those modules import
nothing that does I/O. Everything a mesh makes carries the mesh's name (`names`), so that `cleanup` finds
it with no state file.
"""
