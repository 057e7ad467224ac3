"""The running control plane: a folder of objects in, port 15012 (xDS and CA) and 15014 (status) out.

trio owns the main thread (source, debounce, registry, status); gRPC has a thread of its own.
"""
