"""Which pods of this node are in the mesh, and everything that stands for them.

In: ZDS requests (zds) from whoever runs pods: Istio's CNI agent, our own, or the local mesh's supervisor.
Out: for each pod a captured network namespace, listeners in the engine, a certificate on its way (pods).
"""
