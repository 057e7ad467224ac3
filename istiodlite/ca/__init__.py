"""The certificate authority: signing requests and tokens in, certificates out.

`authorize` and `pods` are pure (who may have which identity); `authority` keeps the root on disk, `issue`
signs, `tokens` proves callers, `service` is the gRPC face.
"""
