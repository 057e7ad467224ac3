"""The wire messages of the control plane, with Istio's field numbers.

The one part of istiodlite that every other package may import: it imports nothing of the project.
"""
