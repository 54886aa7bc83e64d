"""How good a backward pass is that runs the blocks backwards: `experiments.benchmarks.reversible`.

Trains small Keels of several depths (or takes what an earlier call has trained), and compares the
gradient of the plan "reversible" (docs/reversible.md) with that of the plan "block" at the trained
weights, on a batch that was not trained on. Without --error_bound nothing falls back:

    error   largest relative error of the reconstructed stream at an anchor
    step    largest last step of the iteration, relative
    over    share of the stretches where one of the two is not below 1 %
    all     |g - g'| / |g| of all the blocks' gradients as one vector, and 1 - cosine
    worst   the same of the matrix (all blocks of one kind) where it is largest

and, in bf16, what bf16 itself costs: the exact gradient in bf16 against that in float32.

    python -m keel_jax.prepare --input=stdlib --output=runs/stdlib_384 --vocab_size=384
    python -m experiments.benchmarks.reversible --data=runs/stdlib_384 --workdir=runs/reversible
"""

import dataclasses
import json
import pathlib
import time

import jax
import jax.numpy as jnp
from absl import flags
from etils import epath

from experiments.configs import tiny
from keel_jax import config, train
from keel_jax.model import layers, reversible
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import cli, compilation, versions
from keel_jax.training import checkpoint, inputs, logs
from keel_jax.training import step as step_lib

_EXACT = config.RecomputeConfig(plan="block")
# Nothing exceeds it: what is measured is the reconstruction alone.
_NO_BOUND = 1e30
# What "over" counts.
_ONE_PERCENT = 1e-2


def run_config(num_blocks: int, num_steps: int, peak_lr: float, data: str) -> config.Config:
    """A Keel 32 wide, so that its depth is what it is made of."""
    raw = tiny.get_config()
    raw.data.path = data
    raw.model.num_blocks = num_blocks
    raw.model.d_model = 32
    raw.model.d_ffn = 96
    raw.model.num_heads = 2
    raw.model.num_kv_heads = 1
    raw.model.recompute.plan = "block"
    raw.optim.peak_lr = peak_lr
    raw.train.num_steps = num_steps
    raw.train.batch_size = 8
    raw.train.seq_len = 64
    raw.train.log_every_steps = 20
    raw.train.eval_num_batches = 8
    raw.telemetry.every_steps = 0
    return config.from_config_dict(raw)


def gradient(cfg: config.Config, plan: config.RecomputeConfig, dtype: str):
    """Compiled: (params, batch) -> the blocks' gradients, and what the stretches tell, [A, 2]."""
    model = dataclasses.replace(cfg.model, recompute=plan, compute_dtype=dtype)
    cfg = dataclasses.replace(cfg, model=model)

    @jax.jit
    def run(params, batch):
        probe_A2 = reversible.probe(plan, cfg.model.num_blocks)
        gradients = jax.grad(step_lib.objective, argnums=(0, 4), has_aux=True)
        (found, told_A2), _ = gradients(params, batch, cfg, None, probe_A2)
        return found["block"], told_A2

    return run


def compare(found, exact) -> dict:
    """Distances of two trees of gradients: together, and of the worst matrix."""
    square = lambda tree: sum(jnp.vdot(g, g) for g in jax.tree.leaves(tree))  # noqa: E731
    difference = jax.tree.map(jnp.subtract, found, exact)
    dots = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, found, exact)))
    matrices = [
        float(jnp.sqrt(square(part[name]) / square(exact[kind][name])))
        for kind, part in difference.items()
        for name in part
        if name in layers.MATRICES
    ]
    return {
        "all": float(jnp.sqrt(square(difference) / square(exact))),
        "one_minus_cosine": float(1 - dots / jnp.sqrt(square(found) * square(exact))),
        "worst": max(matrices),
    }


def trained(cfg: config.Config, workdir: epath.Path):
    """The run's last weights, a batch that it has not seen, and its validation loss."""
    train.train(cfg, workdir)
    cfg = checkpoint.load_config(workdir)
    mesh = mesh_lib.make(cfg.mesh, jax.devices()[:1])
    params, _ = checkpoint.load_params(workdir, mesh)
    batches = inputs.train_batches(
        dataclasses.replace(cfg, seed=1), inputs.open_inputs(cfg.data), mesh, cfg.train.num_steps
    )
    rows = [row for row in logs.read(workdir) if "eval/loss_nats_per_token" in row]
    return cfg, params, next(batches), rows[-1]["eval/loss_nats_per_token"]


def main(_):
    compilation.enable_cache("")
    rows = []
    for num_blocks in map(int, _NUM_BLOCKS.value):
        name = f"{num_blocks}_lr{_PEAK_LR.value:g}"
        cfg = run_config(num_blocks, _NUM_STEPS.value, _PEAK_LR.value, _DATA.value)
        cfg, params, batch, loss = trained(cfg, epath.Path(_WORKDIR.value) / name)
        print(
            f"{num_blocks} blocks, peak rate {_PEAK_LR.value:g}, {_NUM_STEPS.value} steps: "
            f"validation {loss:.3f} nats a token"
        )
        print(
            f"{'dtype':>9} {'anchors':>8} {'fixed_point_iterations':>12} {'error':>9} {'step':>9} "
            f"{'over':>9} {'all':>9} {'1 - cos':>9} {'worst':>9}"
        )
        in_float32 = gradient(cfg, _EXACT, "float32")(params, batch)[0]
        for dtype in _DTYPES.value:
            exact = gradient(cfg, _EXACT, dtype)(params, batch)[0]
            begin = time.monotonic()
            if dtype != "float32":
                rows.append(
                    dict(
                        num_blocks=num_blocks,
                        dtype=dtype,
                        plan="block",
                        **compare(exact, in_float32),
                    )
                )
                _tell(rows[-1])
            for blocks, fixed_point_iterations in _cases(_CASES.value):
                if blocks > num_blocks:
                    continue
                plan = config.RecomputeConfig(
                    plan="reversible",
                    anchor_blocks=blocks,
                    fixed_point_iterations=fixed_point_iterations,
                    error_bound=_ERROR_BOUND.value,
                )
                found, told_A2 = gradient(cfg, plan, dtype)(params, batch)
                error, step = map(float, told_A2.max(axis=0))
                rows.append(
                    dict(
                        num_blocks=num_blocks,
                        dtype=dtype,
                        plan="reversible",
                        anchor_blocks=blocks,
                        fixed_point_iterations=fixed_point_iterations,
                        error=error,
                        step=step,
                        error_bound=_ERROR_BOUND.value,
                        over=float(jnp.mean(jnp.any(~(told_A2 < _ONE_PERCENT), axis=1))),
                        **compare(found, exact),
                        worst_to_float32=compare(found, in_float32)["worst"],
                        seconds=time.monotonic() - begin,
                    )
                )
                _tell(rows[-1])
        if _JSON.value:
            result = {
                "rows": rows,
                "peak_lr": _PEAK_LR.value,
                "num_steps": _NUM_STEPS.value,
                **versions.describe(),
            }
            pathlib.Path(_JSON.value).write_text(json.dumps(result, indent=2) + "\n")


def _cases(texts: list[str]) -> list[tuple[int, int]]:
    """(blocks of a stretch, fixed_point_iterations) from "8:1", …"""
    return [tuple(map(int, text.split(":"))) for text in texts]


def _tell(row: dict):
    blank = "-"
    numbers = [
        f"{row[name]:9.1e}" if name in row else f"{blank:>9}"
        for name in ("error", "step", "over", "all", "one_minus_cosine", "worst")
    ]
    print(
        f"{row['dtype']:>9} {row.get('anchor_blocks', blank):>8} "
        f"{row.get('fixed_point_iterations', blank):>12} {' '.join(numbers)}",
        flush=True,
    )


if __name__ == "__main__":
    _DATA = flags.DEFINE_string("data", None, "Token shards, as of keel_jax.prepare.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Where the trained models lie, or will.")
    _NUM_BLOCKS = flags.DEFINE_list("num_blocks", "16,64,256", "Depths.")
    _NUM_STEPS = flags.DEFINE_integer("num_steps", 300, "Steps of training.", lower_bound=2)
    _PEAK_LR = flags.DEFINE_float("peak_lr", 1e-2, "Of the training.", lower_bound=0.0)
    _CASES = flags.DEFINE_list(
        "cases",
        "2:1,4:1,8:1,16:1,2:2,8:2,16:2,8:3,8:4",
        "Blocks of a stretch, and fixed_point_iterations of each branch.",
    )
    _ERROR_BOUND = flags.DEFINE_float(
        "error_bound", _NO_BOUND, "As model.recompute.error_bound.", lower_bound=0.0
    )
    _DTYPES = flags.DEFINE_list("dtypes", "float32,bfloat16", "Of multiplications.")
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    flags.mark_flags_as_required(["data", "workdir"])
    cli.run(main)
