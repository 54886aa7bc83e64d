"""`keel_jax.train`, of which process --stuck_process waits for its fourth batch for ever."""

import itertools
import runpy
import sys
import threading

from keel_jax.data import loader

_train_batches = loader.train_batches


def _stuck(*args, **options):
    yield from itertools.islice(_train_batches(*args, **options), 3)
    threading.Event().wait()


if __name__ == "__main__":
    [flag] = [arg for arg in sys.argv if arg.startswith("--stuck_process=")]
    sys.argv.remove(flag)
    if f"--process_id={flag.partition('=')[2]}" in sys.argv:
        loader.train_batches = _stuck
    runpy.run_module("keel_jax.train", run_name="__main__")
