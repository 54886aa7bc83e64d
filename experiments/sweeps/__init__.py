"""What the experiments share: sweeps as data, and results and figures that say where they are from.

A sweep, in the order in which its parts are used:

    experiment  what `python -m experiments.run NAME` needs of an experiment; that of a sweep
    point       a run as data: a config file, overrides, a learning rate, a seed
    datasets    the token shards that the points read
    sweep       runs the points, as trials of few programs; progress draws the bar
    outcome     what became of a point: done, diverged or missing, and what its run logged

The analysis of what was run:

    comparison  final losses by learning rate, and differences between series
    intervals   confidence intervals over seeds, and what they decide
    unigram     the loss of the model that knows token frequencies alone
    checks      the predictions of NOTES.md held against the numbers

What is written:

    figures     PNG and SVG, beside the JSON that they were drawn from
    results     results.json
    notes       which numbers in a NOTES.md the results do not support
"""
