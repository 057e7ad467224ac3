"""HBONE: HTTP/2 CONNECT over mutual TLS, the tunnel between the nodes of the mesh.

In: identities, CONNECT headers and certificates as they stand on the wire. Out: checked values
(`spiffe`, `connect`, `svid`), the closed list of reasons (`reasons`), and, in `hbone.engine`, the
threads that carry the bytes.

`spiffe`, `connect` and `reasons` never import anything that does I/O, tells the time or draws numbers.
"""
