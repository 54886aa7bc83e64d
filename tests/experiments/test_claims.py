"""Claims beside results: what supports one, what contradicts it, and what cannot tell."""

import html

import pytest

from experiments import claims, registry, report_page, result_sets
from experiments.sweeps import results

COMMITTED = result_sets.gather([])


def _evidence(**more):
    given = {"experiment": "alpha", "preset": "micro", "size": "64", "number": "a/b"}
    return claims.Evidence(**given, **more)


def _finding(evidence, numbers):
    claim = claims.Claim(text="", paper="", quantity="", evidence=(evidence,))
    values = {"experiment": "alpha", "preset": "micro", "numbers": numbers}
    [found] = claims.findings(claim, [result_sets.ResultSet(results.ROOT, values)])
    return found


def _row(low, high, name="mean"):
    middle = 0.0 if None in (low, high) else (low + high) / 2
    return {"a": {"b": {name: middle, "low": low, "high": high, "num_seeds": 3}}}


@pytest.mark.parametrize(
    ("evidence", "low", "high", "verdict"),
    [
        ({}, 0.1, 0.3, claims.SUPPORTS),
        ({}, -0.1, 0.3, claims.UNDECIDED),
        ({}, -0.3, -0.1, claims.CONTRADICTS),
        # A censored mean: above the grid's largest rate, or below its least.
        ({}, 0.1, None, claims.SUPPORTS),
        ({}, None, -0.1, claims.CONTRADICTS),
        ({}, None, 0.1, claims.UNDECIDED),
        ({}, None, None, claims.UNDECIDED),
        ({"at_most": 0.0}, -0.3, -0.1, claims.SUPPORTS),
        ({"at_most": 0.0}, -0.3, 0.1, claims.UNDECIDED),
        ({"at_least": 0.9, "at_most": 1.1}, 0.95, 1.05, claims.SUPPORTS),
        ({"at_least": 0.9, "at_most": 1.1}, 0.5, 1.05, claims.UNDECIDED),
        ({"at_least": 0.9, "at_most": 1.1}, 0.5, 0.8, claims.CONTRADICTS),
        ({"is_reversed": True}, 0.1, 0.3, claims.CONTRADICTS),
    ],
)
def test_a_whole_interval_decides(evidence, low, high, verdict):
    assert _finding(_evidence(**evidence), _row(low, high)).verdict == verdict


def test_a_reversed_number_is_shown_with_the_other_sign():
    found = _finding(_evidence(is_reversed=True), _row(0.1, 0.3))
    assert (found.middle, found.low, found.high) == (-0.2, -0.3, -0.1)


def test_medians_have_the_range_of_the_seeds():
    assert _finding(_evidence(), _row(0.1, 0.3)).is_confidence
    assert not _finding(_evidence(), _row(0.1, 0.3, "median")).is_confidence


def test_results_with_missing_runs_decide_nothing():
    found = _finding(_evidence(), _row(0.1, 0.3) | {"missing": ["keel_lr1_seed2"]})
    assert found.verdict == claims.UNDECIDED


@pytest.mark.parametrize("claim", claims.load(), ids=lambda claim: claim.text)
def test_the_evidence_of_each_claim_can_be_run_and_is_there_where_it_was(claim):
    committed = {each.key for each in COMMITTED}
    for evidence, found in zip(claim.evidence, claims.findings(claim, COMMITTED), strict=True):
        assert evidence.preset in registry.load(evidence.experiment).presets
        was_run = (evidence.experiment, evidence.preset) in committed
        assert was_run == (found.verdict != claims.NOT_RUN), evidence.number


def test_the_page_begins_with_the_claims():
    text = html.unescape(report_page.page(COMMITTED, {}, claims.load()))
    first, second = text.index("What was claimed"), text.index("What was run")
    for claim in claims.load():
        assert first < text.index(claim.text) < second
    table = text[first:second]
    # The learning rates come first, and what was not run is said.
    assert claims.load()[0].text.startswith("Keel tolerates larger learning rates")
    assert table.count("not run") == table.count("<td>-</td><td>-</td>") > 0
    assert "95 %: -0.5106 to 0.1865, 3 seeds" in table
