"""From which length on Keel's advantage holds."""

from experiments.data_regime import analysis


def test_the_crossover_is_from_where_on_it_holds():
    assert analysis.crossover({50: "holds", 100: "undecided", 200: "holds", 400: "holds"}) == 200
    assert analysis.crossover({50: "holds", 100: "reversed"}) is None
