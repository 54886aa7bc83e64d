"""What attention's kernels hold and save: `python -m experiments.benchmarks.attention`.

With --topology, compiled for devices that need not be there: temporaries of the gradients of
attention, a device, of each kernel at several lengths. Otherwise, run on the devices here: seconds
of the ring over --context of them with its tokens in zigzag and in consecutive order, and with
every token visible to all, which skips nothing; interleaved, each the best of its rounds. Rates of
a shared machine are ratios: compare the lines of one run.
"""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import topologies

from keel_jax import config
from keel_jax.model import attention
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.parallel import sharding
from keel_jax.runtime import cli, compilation, versions

_BATCH, _HEADS, _KV_HEADS, _HEAD_DIM = 4, 16, 8, 64


def gradient(kernel: str):
    """(q, k, v, segments, index) -> the gradients of the output's sum."""

    def loss(q, k, v, segments, index):
        return (
            attention.attend(
                q,
                k,
                v,
                kernel=kernel,
                query_index_BT=index,
                key_index_BS=index,
                query_segment_ids_BT=segments,
                key_segment_ids_BS=segments,
            )
            .astype(jnp.float32)
            .sum()
        )

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


def arguments(mesh: jax.sharding.Mesh, batch_size: int, num_tokens: int, dtype: str) -> tuple:
    """Shapes, dtypes and shardings of q, k, v, segments and index."""

    def whole(axes, dtype, *rest):
        shape = (batch_size, num_tokens, *rest)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.sharding(mesh, axes, shape))

    query = whole(attention.QUERY_AXES, dtype, _HEADS, _HEAD_DIM)
    key = whole(attention.KEY_AXES, dtype, _KV_HEADS, _HEAD_DIM)
    tokens = whole(attention.TOKEN_AXES, jnp.int32)
    return query, key, key, tokens, tokens


def memory(devices, kernel: str, num_tokens: int) -> dict:
    """Temporaries of one row a device (a fourth of four rows for the ring)."""
    parts = len(devices) if kernel == "ring" else 1
    mesh = mesh_lib.make(config.MeshConfig(context=parts), devices)
    with jax.set_mesh(mesh):
        lowered = gradient(kernel).lower(*arguments(mesh, _BATCH, num_tokens, "bfloat16"))
        begin = time.monotonic()
        compiled = lowered.compile()
    return {
        "kernel": kernel,
        "num_tokens": num_tokens,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_seconds": time.monotonic() - begin,
    }


def seconds(context: int, num_tokens: int, rounds: int) -> list[dict]:
    """Of the ring's gradients in float32, one row, for each order of the tokens."""
    mesh = mesh_lib.make(config.MeshConfig(context=context), jax.devices()[:context])
    shapes = arguments(mesh, 1, num_tokens, "float32")
    rng = np.random.default_rng(0)
    q, k, v = (
        jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding) for x in shapes[:3]
    )
    segments = jax.device_put(np.zeros(shapes[3].shape, np.int32), shapes[3].sharding)
    best = {}
    with jax.set_mesh(mesh):
        run = gradient("ring")
        consecutive = jax.device_put(np.arange(num_tokens, dtype=np.int32)[None], segments.sharding)
        orders = {
            "zigzag": attention.in_order_of("ring", consecutive),
            "consecutive": consecutive,
            "nothing skipped": jnp.zeros_like(consecutive),
        }
        for index in range(rounds + 1):  # the first round compiles
            for name, order in orders.items():
                begin = time.monotonic()
                jax.block_until_ready(run(q, k, v, segments, order))
                if index:
                    best[name] = min(best.get(name, np.inf), time.monotonic() - begin)
    return [{"order": name, "seconds": value} for name, value in best.items()]


def main(_):
    compilation.enable_cache("")
    if _TOPOLOGY.value:
        found = topologies.get_topology_desc(platform="tpu", topology_name=_TOPOLOGY.value)
        rows = []
        print(f"{'kernel':>10} {'tokens':>7} {'temporaries MiB':>16} {'compile s':>10}")
        for num_tokens in map(int, _NUM_TOKENS.value):
            for kernel in ("reference", "splash", "ring"):
                row = memory(found.devices, kernel, num_tokens)
                rows.append(row)
                print(
                    f"{kernel:>10} {num_tokens:7} {row['temporary_bytes'] / 2**20:16.1f} "
                    f"{row['compile_seconds']:10.1f}",
                    flush=True,
                )
    else:
        rows = seconds(_CONTEXT.value, int(_NUM_TOKENS.value[0]), _ROUNDS.value)
        for row in rows:
            ratio = row["seconds"] / rows[-1]["seconds"]
            print(f"{row['order']:>16} {row['seconds']:8.3f} s {ratio:6.2f}")
    if _JSON.value:
        result = {"rows": rows, **versions.describe()}
        pathlib.Path(_JSON.value).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    _TOPOLOGY = flags.DEFINE_string("topology", None, "TPUs to compile for, as v5e:2x2.")
    _CONTEXT = flags.DEFINE_integer("context", 2, "Devices of the ring that is timed.")
    _NUM_TOKENS = flags.DEFINE_list("num_tokens", "2048,8192", "Lengths; timed: the first.")
    _ROUNDS = flags.DEFINE_integer("rounds", 5, "Times that each order is run.")
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    cli.run(main)
