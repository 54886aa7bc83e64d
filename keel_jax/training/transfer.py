"""Between the host and the devices: batches there, scalars back."""

import jax
import numpy as np

from keel_jax.training import state as state_lib


def put_batch(batch: dict[str, np.ndarray], abstract: dict) -> dict[str, jax.Array]:
    """This process's rows of a batch as its part of the global arrays."""
    return {
        key: jax.make_array_from_process_local_data(leaf.sharding, batch[key], leaf.shape)
        for key, leaf in abstract.items()
    }


def per_lane(sums: dict, num_lanes: int) -> list[dict[str, float]]:
    """Scalars ([K] with K lanes), waited for, as one dictionary of Python numbers per lane."""
    host = {key: np.asarray(value) for key, value in jax.device_get(sums).items()}
    return [
        {key: state_lib.lane_of(value, lane, num_lanes).item() for key, value in host.items()}
        for lane in range(num_lanes)
    ]
