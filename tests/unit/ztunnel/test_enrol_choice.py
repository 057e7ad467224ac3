"""Who tells which pods are in: every combination that matters."""

from __future__ import annotations

import pytest

from ztunnel.enrol.choice import SILENCE, Setting, Source, ZdsSocket, choose

ZDS, KUBERNETES = Source.ZDS, Source.KUBERNETES


@pytest.mark.parametrize("socket", ZdsSocket)
@pytest.mark.parametrize("in_cluster", [True, False])
def test_a_setting_is_obeyed(socket: ZdsSocket, in_cluster: bool) -> None:
    for setting, source in ((Setting.ZDS, ZDS), (Setting.KUBERNETES, KUBERNETES)):
        chosen = choose(setting, socket, in_cluster=in_cluster, waited=0)
        assert chosen is not None
        assert (chosen.source, chosen.why) == (source, "by setting")


@pytest.mark.parametrize(
    ("socket", "in_cluster", "waited", "source", "why"),
    [
        (ZdsSocket.ABSENT, False, 0, ZDS, "not in a cluster"),
        (ZdsSocket.ANSWERS, False, 0, ZDS, "not in a cluster"),
        (ZdsSocket.ANSWERS, True, 0, ZDS, "a CNI agent answers at the ZDS socket"),
        (ZdsSocket.ABSENT, True, 0, KUBERNETES, "there is no ZDS socket"),
        (ZdsSocket.SILENT, True, SILENCE, KUBERNETES, "nobody answered at the ZDS socket for 30 s"),
    ],
)
def test_auto(socket: ZdsSocket, in_cluster: bool, waited: float, source: Source, why: str) -> None:
    chosen = choose(Setting.AUTO, socket, in_cluster=in_cluster, waited=waited)
    assert chosen is not None
    assert (chosen.source, chosen.why) == (source, why)


def test_auto_gives_a_silent_socket_time() -> None:
    assert choose(Setting.AUTO, ZdsSocket.SILENT, in_cluster=True, waited=SILENCE - 1) is None
