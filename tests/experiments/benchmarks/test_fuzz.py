"""The command that fuzzes counts what its trials end as, and notices exceptions and hangs."""

import time

import pytest

from experiments.benchmarks import fuzz


def _half(seed, directory):
    return "refused" if seed % 2 else "accepted"


def _faulty(seed, directory):
    assert seed != 3, "absurd"
    return "refused"


def _hanging(seed, directory):
    time.sleep(60 if seed == 1 else 0)
    return "accepted"


def test_outcomes_faults_and_hangs_are_counted_with_their_seeds(tmp_path):
    kinds = {"half": _half, "faulty": _faulty, "hanging": _hanging}
    tallies = fuzz.measure(12, 0, 0.5, tmp_path, kinds)
    assert tallies["half"].counts == {"refused": 2, "accepted": 2}
    assert tallies["faulty"].counts == {"refused": 3, "fault": 1}
    [(seed, text)] = tallies["faulty"].faults
    assert seed == 3 and "AssertionError: absurd" in text
    [(seed, text)] = tallies["hanging"].faults
    assert seed == 1 and "Hang: no end after 0.5 s" in text
    assert 0.5 < tallies["hanging"].longest_seconds < 30


@pytest.mark.slow
def test_some_hundred_trials_of_each_kind_have_no_fault(tmp_path):
    tallies = fuzz.measure(2000, 100_000, 60.0, tmp_path)
    assert list(tallies) == list(fuzz.KINDS)
    for name, tally in tallies.items():
        assert not tally.faults, (name, tally.faults)
        assert tally.counts["refused"] and tally.counts["accepted"], name
