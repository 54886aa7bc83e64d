"""Memory and time of the attention kernels: `python -m experiments.benchmarks.attention`.

With --topology it compiles the gradients of attention for devices that need not be present, and
prints the temporaries a device of each kernel at several lengths. Otherwise it runs on this
machine's devices, and prints the seconds of the ring over --context of them: with its tokens in
zigzag and in consecutive order, and with every token visible to all, so that nothing is skipped.
The orders take turns, and each one's best round counts. On a shared machine only the ratios between
the lines of one run mean something.
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from keel_jax import config
from keel_jax.model import attention
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.parallel import sharding, topology
from keel_jax.runtime import cli, compilation, result_file, versions

_BATCH, _HEADS, _KV_HEADS, _HEAD_DIM = 4, 16, 8, 64


def gradient(kernel: str) -> jax.stages.Wrapped:
    """Jitted: (q, k, v, segment_ids, index) -> the gradients of the output's sum."""

    def loss(q, k, v, segment_ids, index):
        return (
            attention.attend(
                q,
                k,
                v,
                kernel=kernel,
                query_index_BT=index,
                key_index_BS=index,
                query_segment_ids_BT=segment_ids,
                key_segment_ids_BS=segment_ids,
            )
            .astype(jnp.float32)
            .sum()
        )

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


def arguments(mesh: jax.sharding.Mesh, batch_size: int, num_tokens: int, dtype: str) -> tuple:
    """Shapes, dtypes and shardings of q, k, v, segment_ids and index."""

    def abstract(axes, dtype, *rest):
        shape = (batch_size, num_tokens, *rest)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.sharding(mesh, axes, shape))

    query = abstract(attention.QUERY_AXES, dtype, _HEADS, _HEAD_DIM)
    key = abstract(attention.KEY_AXES, dtype, _KV_HEADS, _HEAD_DIM)
    tokens = abstract(attention.TOKEN_AXES, jnp.int32)
    return query, key, key, tokens, tokens


def memory(devices: Sequence[Any], kernel: str, num_tokens: int) -> dict:
    """Temporaries of one row a device; for the ring, of a fourth of four rows."""
    parts = len(devices) if kernel == "ring" else 1
    mesh = mesh_lib.make(config.MeshConfig(context=parts), devices)
    with jax.set_mesh(mesh):
        lowered = gradient(kernel).lower(*arguments(mesh, _BATCH, num_tokens, "bfloat16"))
        begin = time.monotonic()
        compiled = lowered.compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None, "the compiler for TPUs reports memory"
    return {
        "kernel": kernel,
        "num_tokens": num_tokens,
        "temporary_bytes": analysis.temp_size_in_bytes,
        "compile_seconds": time.monotonic() - begin,
    }


def seconds(context: int, num_tokens: int, rounds: int) -> list[dict]:
    """Seconds of the ring's gradients in float32, one row, for each order of the tokens."""
    mesh = mesh_lib.make(config.MeshConfig(context=context), jax.devices()[:context])
    shapes = arguments(mesh, 1, num_tokens, "float32")
    rng = np.random.default_rng(0)
    q, k, v = (
        jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding) for x in shapes[:3]
    )
    segment_ids = jax.device_put(np.zeros(shapes[3].shape, np.int32), shapes[3].sharding)
    best: dict[str, float] = {}
    with jax.set_mesh(mesh):
        run = gradient("ring")
        consecutive = jax.device_put(
            np.arange(num_tokens, dtype=np.int32)[None], segment_ids.sharding
        )
        orders = {
            "zigzag": attention.in_order_of("ring", consecutive),
            "consecutive": consecutive,
            "nothing skipped": jnp.zeros_like(consecutive),
        }
        for index in range(rounds + 1):  # the first round compiles
            for name, order in orders.items():
                begin = time.monotonic()
                jax.block_until_ready(run(q, k, v, segment_ids, order))
                if index:
                    best[name] = min(best.get(name, np.inf), time.monotonic() - begin)
    return [{"order": name, "seconds": value} for name, value in best.items()]


def main(_: list[str]) -> None:
    """Measures what the flags say."""
    result_file.check("--json", _JSON.value)
    compilation.enable_cache("")
    if _TOPOLOGY.value:
        topology.prepare(_TOPOLOGY.value)
        devices = topology.devices(_TOPOLOGY.value)
        rows = []
        print(f"{'kernel':>10} {'tokens':>7} {'temporaries MiB':>16} {'compile s':>10}")
        for num_tokens in map(int, _NUM_TOKENS.value):
            for kernel in ("reference", "splash", "ring"):
                row = memory(devices, kernel, num_tokens)
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
        result_file.write_json(_JSON.value, result)


if __name__ == "__main__":
    _TOPOLOGY = flags.DEFINE_string("topology", None, "TPUs to compile for, as in v5e:2x2.")
    _CONTEXT = flags.DEFINE_integer("context", 2, "Devices of the ring that is timed.")
    _NUM_TOKENS = flags.DEFINE_list("num_tokens", "2048,8192", "Lengths; timed: the first.")
    _ROUNDS = flags.DEFINE_integer("rounds", 5, "Times that each order is run.")
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    cli.run(main)
