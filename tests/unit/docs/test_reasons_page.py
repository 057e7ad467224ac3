"""The page of reasons says what the code says."""

from pathlib import Path

from daemonset.ctl.reasons import markdown
from hbone.engine import REASONS
from hbone.reasons import Reason

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reasons.md"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == markdown() + "\n", "run `make generate`"


def test_every_reason_of_the_engine_is_in_the_closed_list() -> None:
    assert set(REASONS) <= {reason.value for reason in Reason}
