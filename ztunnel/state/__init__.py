"""What this node knows of the mesh: workloads, services and authorization policies.

In: protobuf resources (`convert`), gathered into an `Update`. Out: an immutable `Snapshot` with the
indexes that decisions need, and `Changes` naming what an update touched. Never imports trio, socket,
ssl, time, random, os or grpc.
"""
