"""The node agent: holds what the control plane said, decides about every connection, has bytes carried.

`state` holds the mesh as one immutable snapshot, `decide` turns a connection and a snapshot into a
verdict, `xds.delta` turns the control plane's messages into updates: these are pure. The rest are thin
shells around them.
"""
