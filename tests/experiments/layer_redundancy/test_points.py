"""Each preset has its sizes and both topologies."""

from experiments.layer_redundancy import points


def test_presets_name_files_and_trials():
    for name, preset in points.PRESETS.items():
        made = preset().points
        assert {p.series.split("-")[0] for p in made} == set(points.TOPOLOGIES), name
        assert name in points.SIZES
