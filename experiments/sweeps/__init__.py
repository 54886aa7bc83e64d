"""What the experiments share: sweeps as data, and results and figures that say where they are from.

A sweep, in the order in which its parts are used:

    experiment  what `python -m experiments.run NAME` needs of an experiment; that of a sweep
    point       a run as data: a config file, overrides, a learning rate, a seed
    datasets    the token shards that the points read
    sweep       runs the points, as trials of few programs; progress draws the bar
    outcome     what became of a point: done, diverged or missing, and what its run logged

The analysis of what was run:

    unigram     the loss of the model that knows token frequencies alone
    merit       the primary figure, nats below the unigram line over a grid of rates; usable rates
    comparison  final losses by learning rate, and differences between series
    intervals   confidence intervals over seeds, what they decide, and what they could have found
    censored    the same of values that are known to lie between two rates of a grid
    registration  predictions that cannot change after the first run, beside the numbers
    checks      the predictions in the NOTES.md of older presets, beside the numbers

What is written:

    figures     PNG, SVG and PDF, beside the JSON that they were drawn from
    results     results.json
    notes       which numbers in a NOTES.md the results do not support
"""
