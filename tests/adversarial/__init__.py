"""Peers that mean harm, and worlds that fall apart: what the engine and the decisions hold against them.

Each test attacks one engine (`tests.support.arena`) beside a canary that must not notice, and each is about one
row of a table of known attacks, by number: h2 (1-23, 75-77), connect (24-31), tls (32-47), process (78).
Expected: an answer from the protocol's own vocabulary, one reason, bounded cost, everything given back.
"""
