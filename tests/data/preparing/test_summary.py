"""Laws of what a preparation reports: progress up to the whole, and the figures of the set."""

from keel_jax.data import shards
from keel_jax.data.preparing import preparation, summary
from tests.data.preparing import corpora


def test_progress_goes_from_nothing_to_all_units(source, tmp_path):
    reports: list[summary.Progress] = []
    outcome = preparation.prepare_token_set(
        source, tmp_path / "out", corpora.OPTIONS, on_progress=reports.append
    )
    assert [report.num_units_done for report in reports] == list(range(outcome.num_units + 1))
    assert {report.num_units for report in reports} == {outcome.num_units}
    assert reports[0].tokens_per_second == reports[0].num_bytes_done == 0
    last = reports[-1]
    assert last.num_bytes_done == last.num_bytes > 0
    # The leading EOS of each split is in no unit.
    assert last.num_new_tokens == last.num_tokens_done == outcome.num_tokens - 2
    assert last.tokens_per_second == outcome.tokens_per_second > 0


def test_the_summary_adds_up_the_splits(source, tmp_path):
    outcome = corpora.prepare(source, tmp_path / "out")
    token_set = shards.open_set(tmp_path / "out")
    assert outcome.fingerprint == token_set.fingerprint
    assert outcome.num_units == len(list((tmp_path / "out").glob("unit-*.json")))
    for name in token_set.split_names:
        split, reported = token_set.split(name), outcome.splits[name]
        assert reported["num_tokens"] == split.num_tokens
        assert reported["unigram_entropy_bits_per_byte"] == split.unigram_entropy_bits_per_byte
    assert outcome.num_bytes == sum(split["num_bytes"] for split in outcome.splits.values())
    assert outcome.bytes_per_token == outcome.num_bytes / outcome.num_tokens
