"""The benchmark of checkpoints measures each contender once a round."""

from experiments.benchmarks import checkpoints


def test_all_contenders_move_the_same_bytes(tmp_path):
    result = checkpoints.bench(1, 2, tmp_path)
    assert all(seconds > 0 for seconds in result["seconds"].values())
    assert {"copy in memory", "save: blocked", "save: whole", "verify: contents"} <= set(
        result["seconds"]
    )
    assert result["seconds"]["save: whole"] > result["seconds"]["save: blocked"]
    plain = (tmp_path / "0" / "plain").stat().st_size
    assert plain == result["num_bytes"]
