"""What `ambientctl status` says of agents."""

from __future__ import annotations

from daemonset.ctl.status import refused_short_cuts


def test_only_nodes_that_cannot_give_the_short_cut_are_named() -> None:
    nodes = {
        "on": {"capture": {"redirect_peer": {"state": "on", "problem": ""}}},
        "refused": {
            "capture": {"redirect_peer": {"state": "refused", "problem": "self_test_failed: no tcx"}}
        },
        "older": {"capture": {"variant": "B"}},
        "silent": {"capture": None},
    }
    assert refused_short_cuts(nodes) == [
        "refused gives direct connections no short cut: self_test_failed: no tcx"
    ]
