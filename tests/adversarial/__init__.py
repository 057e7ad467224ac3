"""Peers that mean harm, and worlds that fall apart: what the engine and the decisions hold against them.

Each test attacks one engine (`tests.support.arena`) beside a canary that must not notice, and each is about one
row of the table of known attacks in README.md, by number.
Expected: an answer from the protocol's own vocabulary, one reason, bounded cost, everything given back.
"""
