"""The decisions: which way a connection goes, and whether it may.

In: a connection as the engine reports it, a `Snapshot`, and random draws as arguments. Out: a `Verdict`,
which enforcement, access log, metric labels, `explain` and re-decision of live flows all consume. Never
imports trio, socket, ssl, time, random, os or grpc.
"""
