"""The live connections: who talks to whom by which decision (registry), decided again when facts change (redecide).

In: engine events and verdicts; changes of the snapshot. Out: metrics, access log lines, cuts.
"""
