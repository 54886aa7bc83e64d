"""What the experiments share: sweeps as data, results and figures with their origin beside them."""
