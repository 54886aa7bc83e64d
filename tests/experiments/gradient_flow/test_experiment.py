"""Gradient flow from end to end on its smallest preset."""

from experiments.gradient_flow import experiment, points
from experiments.sweeps import results


def test_the_run_writes_numbers_and_figures(monkeypatch, tmp_path):
    """On the tiny preset, of few topologies."""
    names = ("keel", "pre_ln")
    monkeypatch.setattr(points, "OVER_DEPTH", names)
    monkeypatch.setattr(points, "NAMES", names)
    numbers = experiment.measure_all("tiny", tmp_path, [], None)
    content = results.load(tmp_path)
    assert (
        content["experiment"] == "gradient_flow" and content["numbers"]["unit"] == numbers["unit"]
    )
    assert set(numbers["initial"]) == set(names) and set(numbers["unit"]) == {"keel"}
    at = numbers["unit"]["keel"]["8"]["path_gain_from_block_0"]
    assert 0.5 < at["low"] <= at["median"] <= at["high"] < 1.5 and at["num_seeds"] == 2
    for stem in ("path_over_depth", "path_profile", "forward", "backward", "branch_gradients"):
        assert {path.suffix for path in (tmp_path / "figures").glob(f"{stem}.*")} == {
            ".png",
            ".svg",
            ".pdf",
            ".json",
        }
