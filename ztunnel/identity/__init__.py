"""Certificates of the pods on this node: when to get them (renewal), who gets them first (manager), from whom (ca).

In: identities to hold (pods enrolled, workloads that appear, connections that wait). Out: an Svid for each,
handed to the engine under a number of its own before its predecessor expires.
"""
