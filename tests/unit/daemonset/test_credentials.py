"""The file of roots that the local mesh's agents read."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509

from daemonset.local.credentials import write_root
from istiodlite.ca.roots import advance


def test_the_roots_follow_a_change_and_are_left_alone_otherwise(tmp_path: Path) -> None:
    data, target = tmp_path / "data", tmp_path / "root-cert.pem"
    write_root(data, target)
    first = target.stat().st_ino
    write_root(data, target)
    assert target.stat().st_ino == first
    advance(data, "cluster.local", datetime.datetime.now(datetime.UTC))
    write_root(data, target)
    assert len(x509.load_pem_x509_certificates(target.read_bytes())) == 2
