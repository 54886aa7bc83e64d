"""The benchmark of checkpoints measures each contender once a round."""

from experiments.benchmarks import checkpoints


def test_what_a_save_keeps_is_the_difference_of_the_second_half(tmp_path, monkeypatch):
    read = iter([1_000, 4_000])
    monkeypatch.setattr(checkpoints, "_own_bytes", lambda: next(read))
    assert checkpoints.bytes_kept_per_save(4, tmp_path) == 1500
    assert (tmp_path / "checkpoints" / "4").exists()


def test_all_contenders_move_the_same_bytes(tmp_path):
    result = checkpoints.bench(1, 2, tmp_path)
    assert all(seconds > 0 for seconds in result["seconds"].values())
    assert {"copy in memory", "save: blocked", "save: whole", "verify: contents"} <= set(
        result["seconds"]
    )
    assert result["seconds"]["save: whole"] > result["seconds"]["save: blocked"]
    plain = (tmp_path / "0" / "plain").stat().st_size
    assert plain == result["num_bytes"]
