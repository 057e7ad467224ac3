"""The default: listening on all addresses, with all of them in the serving certificate."""

from __future__ import annotations

import signal
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.ports import free_port, wait_listening
from tests.support.serving import COMMAND, ROOT


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
def test_a_wildcard_address_is_served_with_the_addresses_of_the_machine(tmp_path: Path, host: str) -> None:
    port = free_port()
    words = ["serve", "--objects", str(tmp_path), "--data", str(tmp_path / "data")]
    process = subprocess.Popen(
        [*COMMAND, *words, "--listen", f"{host}:{port}", "--status-port", str(free_port())], cwd=ROOT
    )
    try:
        wait_listening(port)
        leaf = x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port)).encode())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert {"127.0.0.1", "::1"} <= set(map(str, names.get_values_for_type(x509.IPAddress)))
        assert "istiod.istio-system.svc" in names.get_values_for_type(x509.DNSName)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
