"""The figures of group `enrol` make a result."""

from tests.bench.enrol.group import ROW, sample_of
from tests.bench.results import SUBJECT, Samples, document, problems
from tests.support.churn import Churn


def test_figures_make_a_result() -> None:
    sample = sample_of(Churn(4, 0.5, 0.02, adds=[0.004, 0.001, 0.002, 0.003], deletes=[0.001]), 0.25)
    assert (sample.value, sample.cpu_s_per_unit, sample.p50_us, sample.p99_us) == (8.0, 0.005, 3000.0, 4000.0)
    samples = Samples()
    samples.add(SUBJECT, sample)
    machine = dict.fromkeys(("cpu", "kernel", "cores", "python", "openssl"), "") | {"versions": {}}
    assert problems(document("enrol", machine, {}, [(ROW, samples)], [SUBJECT], {})) == []
