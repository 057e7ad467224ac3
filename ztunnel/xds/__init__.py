"""The agent's side of the control plane's delta stream.

`delta` is the session: messages in, updates and answers out, no I/O, no clock. `client` moves its
messages over gRPC.
"""
