"""`keel_jax.train`, of which process 1 flips a bit of its own copy of the weights after step 2."""

import dataclasses
import itertools
import runpy
import sys

import jax
import numpy as np

from keel_jax.training import programs

_compile_all = programs.compile_all


def _compile_faulty(*args):
    compiled = _compile_all(*args)
    numbers = itertools.count(1)

    def train_step(state, batch):
        state, sums = compiled.train_step(state, batch)
        if next(numbers) == 2:
            array = state.params["embedding"]["table"]
            [shard] = array.addressable_shards
            value = np.array(jax.device_get(shard.data))
            value.view(np.uint32)[2, 1] ^= 1
            part = jax.device_put(value, shard.device)
            array = jax.make_array_from_single_device_arrays(array.shape, array.sharding, [part])
            state = dataclasses.replace(
                state, params=state.params | {"embedding": {"table": array}}
            )
        return state, sums

    return dataclasses.replace(compiled, train_step=train_step)


if __name__ == "__main__":
    if "--process_id=1" in sys.argv:
        programs.compile_all = _compile_faulty
    runpy.run_module("keel_jax.train", run_name="__main__")
