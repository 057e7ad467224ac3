"""Certificates that change, agents that drain, agents that die: what the other side sees."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from daemonset.demo.mesh import wait_for
from tests.interop.ztunnel.mesh import OURS, THEIRS, MixedMesh
from tests.interop.ztunnel.ticker import Attempts, Ticker

pytestmark = [pytest.mark.root, pytest.mark.ztunnel]

WAYS = [("our", "rust"), ("rust", "our")]
DRAIN, LONG_DRAIN = 5.0, 30.0  # seconds, a second less than TERMINATION_GRACE_PERIOD_SECONDS


def serials(mesh: MixedMesh, node: str) -> dict[str, str]:
    """Serial numbers of the certificates that the agent uses, by identity."""
    held = mesh.dump(node)["certificates"]
    return {c["identity"]: c["certChain"][0]["serialNumber"] for c in held if c["state"] == "Available"}


def test_certificates_are_renewed_under_load_without_a_failure(brisk: MixedMesh) -> None:
    tickers = [Ticker(brisk, f"shop/{s}-client", f"{t}-web.shop") for s, t in WAYS]
    before = {node: serials(brisk, node) for node in (OURS, THEIRS)}
    results: list[dict[str, Any]] = []
    loads = [
        threading.Thread(
            target=lambda s=s, t=t: results.append(
                brisk.run(f"shop/{s}-guest", "load", f"{t}-web.shop", "35")
            )  # type: ignore[misc]
        )
        for s, t in WAYS
    ]
    for load in loads:
        load.start()
    try:

        def renewed() -> bool:
            now = {node: serials(brisk, node) for node in (OURS, THEIRS)}
            return all(now[n].get(i) not in (None, s) for n, held in before.items() for i, s in held.items())

        wait_for("every certificate is renewed", renewed, 33, 0.5)
        for load in loads:
            load.join(60)
        assert all(ticker.alive() for ticker in tickers), "an open connection did not survive"
    finally:
        for ticker in tickers:
            ticker.close()
    assert len(results) == 2
    assert [r["failed"] for r in results] == [[], []]
    assert all(r["done"] > 100 for r in results)


@contextlib.contextmanager
def agent_back(mesh: MixedMesh, node: str) -> Iterator[int]:
    """The agent's process id; afterwards another process has its place and both ways work."""
    pid = mesh.agent_pid(node)
    yield pid
    wait_for("another agent", lambda: mesh.agent_pid(node) not in (0, pid), 60)
    wait_for("it is ready", lambda: _ready(mesh, node), 60)
    for source, target in WAYS:
        wait_for(
            f"{source} reaches {target}",
            lambda s=source, t=target: mesh.answers(f"shop/{s}-client", f"{t}-web.shop"),  # type: ignore[misc]
            60,
        )


def _ready(mesh: MixedMesh, node: str) -> bool:
    try:
        return mesh.ready(node) == "200"
    except Exception:
        return False


@pytest.mark.parametrize(("source", "target"), WAYS)
def test_a_draining_server_lets_open_connections_live_until_its_deadline(
    brisk: MixedMesh, source: str, target: str
) -> None:
    node = THEIRS if target == "rust" else OURS
    with agent_back(brisk, node) as pid:
        ticker = Ticker(brisk, f"shop/{source}-client", f"{target}-web.shop")
        try:
            asked = time.monotonic()
            os.kill(pid, signal.SIGTERM)
            wait_for("the open connection ends", lambda: ticker.end, 60)
            assert ticker.last - asked > DRAIN / 2, "it should have lived until the deadline"
        finally:
            ticker.close()


def test_new_connections_to_a_draining_ztunnel_fail_at_once(patient: MixedMesh) -> None:
    """Its listeners are closed, its tunnels have said GOAWAY: nobody may wait for an answer that never comes, which
    would be until the drain's end."""
    with agent_back(patient, THEIRS) as pid, contextlib.ExitStack() as closing:
        held = Ticker(patient, "shop/our-client", "rust-web.shop")
        closing.callback(held.close)
        tried = Attempts(patient, "shop/our-client", "rust-web.shop")
        closing.callback(tried.close)
        os.kill(pid, signal.SIGTERM)
        found = wait_for("new connections are refused", tried.failures, LONG_DRAIN)
        assert found[0]["seconds"] < LONG_DRAIN / 3, found[0]
        assert not held.end, "the server was not draining any more"


def test_new_connections_to_our_draining_agent_wait_for_the_next_one(brisk: MixedMesh) -> None:
    """The fd store keeps its listeners meanwhile; the next agent accepts tunnels when it has a certificate. One connection at most may have crossed the GOAWAY: Istio's client
    does not try again what was refused."""
    with agent_back(brisk, OURS) as pid, contextlib.ExitStack() as closing:
        held = Ticker(brisk, "shop/rust-client", "our-web.shop")
        closing.callback(held.close)
        tried = Attempts(brisk, "shop/rust-client", "our-web.shop")
        closing.callback(tried.close)
        os.kill(pid, signal.SIGTERM)
        wait_for("the open connection ends", lambda: held.end, 60)
        made = len(tried.found)
        wait_for("connections are answered again", lambda: tried.found[made + 3 :], 90)
        assert len(tried.failures()) <= 1, tried.failures()


@pytest.mark.parametrize(("source", "target"), WAYS)
def test_a_killed_agent_breaks_its_connections_and_comes_back(
    brisk: MixedMesh, source: str, target: str
) -> None:
    node = THEIRS if target == "rust" else OURS
    with agent_back(brisk, node) as pid:
        ticker = Ticker(brisk, f"shop/{source}-client", f"{target}-web.shop")
        try:
            os.kill(pid, signal.SIGKILL)
            wait_for("the open connection ends", lambda: ticker.end, 60)
        finally:
            ticker.close()
