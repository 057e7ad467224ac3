"""Handshakes, certificates, records, rotation."""
