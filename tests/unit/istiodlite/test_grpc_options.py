"""gRPC ignores options that it does not know: a misspelt one changes nothing and says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpc._cython import cygrpc

from istiodlite.server.grpc_thread import _OPTIONS


@pytest.mark.parametrize("name", [name for name, _ in _OPTIONS])
def test_the_library_knows_the_option(name: str) -> None:
    assert name.encode() in Path(cygrpc.__file__).read_bytes()
