"""Istio's own control plane: our agent as its client, and istiodlite beside it on the same objects."""
