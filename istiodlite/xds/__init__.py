"""Discovery: resources in, delta xDS conversations out.

`store` and `session` are pure (requests and times in, responses out); `server` puts them on gRPC.
"""
