"""Running the mesh: on Kubernetes (`daemonset/kubernetes`), on one machine (`daemonset.local`), and the
user's command line for both (`daemonset.ctl`).

In: manifests. Out: running nodes, pods, agents and a control plane. Nothing imports this package.
"""
