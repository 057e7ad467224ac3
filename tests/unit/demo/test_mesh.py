"""The demo's reading of access logs and metrics, and its waiting."""

import pytest

from daemonset.demo.mesh import NotObserved, fields, matching, wait_for

LINE = (
    "2026-01-02T03:04:05.000006Z\tinfo\taccess\tconnection complete\t"
    'src.addr=10.0.1.2:41200 src.workload="client" src.identity="spiffe://cluster.local/ns/shop/sa/client" '
    'dst.addr=10.0.2.9:15008 direction="outbound" bytes_sent=84 error="policy \\"x\\" denied"'
)


def test_fields_of_an_access_log_line() -> None:
    found = fields(LINE)
    assert found["src.addr"] == "10.0.1.2:41200"
    assert found["src.identity"] == "spiffe://cluster.local/ns/shop/sa/client"
    assert found["direction"] == "outbound"
    assert found["error"] == 'policy "x" denied'


def test_only_samples_with_all_labels_are_summed() -> None:
    samples = {
        (("app", "web"), ("reporter", "source")): 2.0,
        (("app", "web"), ("reporter", "destination")): 5.0,
        (("app", "db"), ("reporter", "source")): 11.0,
    }
    assert matching(samples, app="web", reporter="source") == 2.0
    assert matching(samples, app="web") == 7.0


def test_waiting_gives_what_was_found_or_says_what_was_not() -> None:
    answers = iter([None, 0, "here"])
    assert wait_for("it", lambda: next(answers), 1, pause=0) == "here"
    with pytest.raises(NotObserved, match="never: not within 0 s"):
        wait_for("never", lambda: None, 0, pause=0)
