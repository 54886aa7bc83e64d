"""Tasks that ask for depth, generated from seeds: their problems, answers, splits and records."""
