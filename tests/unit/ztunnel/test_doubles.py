"""The doubles have the faces of what they stand for."""

from __future__ import annotations

import inspect

import pytest

from ebpf.capture import Capture
from hbone.engine import Engine
from tests.unit.ztunnel.doubles import FakeCapture, Recorder


def test_the_capture_double_has_the_real_signatures() -> None:
    for name in ("enrol", "withdraw", "release", "let_go", "prune"):
        real, double = getattr(Capture, name), getattr(FakeCapture, name)
        assert list(inspect.signature(real).parameters) == list(inspect.signature(double).parameters)


def test_a_call_that_the_engine_would_not_take_fails_here_too() -> None:
    engine = Recorder(Engine)
    engine.cut(1, 2)
    with pytest.raises(TypeError):
        engine.cut(1, 2, 3)
    with pytest.raises(AttributeError):
        engine.no_such_method()
    assert engine.named("cut") == [{"token": 1, "reason_code": 2}]
