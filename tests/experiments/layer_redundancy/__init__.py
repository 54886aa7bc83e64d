# Of the trained model.
NUM_BLOCKS = 3
