"""How exact the backward pass of the plan "reversible" is: `experiments.benchmarks.reversible`.

Trains small Keels of several depths, or takes those that an earlier call has trained, and compares
the gradient of the plan "reversible" (docs/reversible.md) with that of the plan "block" at the
trained weights, on a batch that was not trained on. Without --error_bound no stretch falls back.

    error   largest relative error of the reconstructed stream at an anchor
    step    largest last step of the iteration, relative
    over    fraction of the stretches where one of the two is not below 1 %
    all     |g - g'| / |g| of all the blocks' gradients as one vector, and 1 - cosine
    worst   |g - g'| / |g| of the matrix (of all blocks together) where it is largest

In bf16 it also prints what bf16 itself costs: the exact gradient in bf16 against float32.

    python -m keel_jax.prepare --input=embedded --output=runs/embedded_384 --vocab_size=384
    python -m experiments.benchmarks.reversible --data=runs/embedded_384 --workdir=runs/reversible
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from absl import flags
from etils import epath

from experiments.configs import tiny
from keel_jax import config, train
from keel_jax.model import depth, layers
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import cli, compilation, result_file, versions
from keel_jax.training import checkpoint, inputs, logs
from keel_jax.training import step as step_lib
from keel_jax.training import trained as trained_lib

# A tree of arrays.
Params: TypeAlias = Any

_EXACT = config.RecomputeConfig(plan="block")
# No error exceeds it, so that the reconstruction alone is measured.
_NO_BOUND = 1e30
# "over" counts what is not below it.
_ONE_PERCENT = 1e-2


def run_config(num_blocks: int, num_steps: int, peak_lr: float, data: str) -> config.Config:
    """A Keel 32 wide: narrow, so that it can be deep."""
    raw = tiny.get_config()
    raw.data.path = config.join_paths([data])
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


def gradient(
    cfg: config.Config, plan: config.RecomputeConfig, dtype: str
) -> Callable[[Params, dict], tuple[Params, jax.Array | None]]:
    """Jitted: (params, batch) -> the blocks' gradients, and the errors of the stretches, [A, 2].

    Only the plan "reversible" has stretches; for others the second is None.
    """
    model = dataclasses.replace(cfg.model, recompute=plan, compute_dtype=dtype)
    cfg = dataclasses.replace(cfg, model=model)

    @jax.jit
    def run(params, batch):
        measured = depth.step_instruments(cfg.model)
        gradients = jax.grad(step_lib.objective, argnums=(0, 3), has_aux=True)
        (grads, cotangents), _ = gradients(params, batch, cfg, measured)
        return grads["block"], cotangents.reversal

    return run


def compare(grads: Params, exact: Params) -> dict:
    """Distances of two trees of gradients: together, and of the worst matrix."""
    difference = jax.tree.map(jnp.subtract, grads, exact)
    dots = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, grads, exact)))
    matrices = [
        float(jnp.sqrt(_square(branch[name]) / _square(exact[kind][name])))
        for kind, branch in difference.items()
        for name in branch
        if name in layers.MATRICES
    ]
    return {
        "all": float(jnp.sqrt(_square(difference) / _square(exact))),
        "one_minus_cosine": float(1 - dots / jnp.sqrt(_square(grads) * _square(exact))),
        "worst": max(matrices),
    }


def _square(tree: Params) -> jax.Array:
    """The sum of the squares of all leaves."""
    return jnp.asarray(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)))


def trained(cfg: config.Config, workdir: epath.Path) -> tuple[config.Config, Params, dict, float]:
    """The run's config, last weights, a batch that it was not trained on, validation loss."""
    train.train(cfg, workdir)
    cfg = checkpoint.load_config(workdir)
    mesh = mesh_lib.make(cfg.mesh, jax.devices()[:1])
    params, _ = trained_lib.load_params(workdir, mesh)
    batches = inputs.train_batches(
        dataclasses.replace(cfg, seed=1), inputs.open_inputs(cfg.data), mesh, cfg.train.num_steps
    )
    rows = [row for row in logs.read(workdir) if "eval/loss_nats_per_token" in row]
    return cfg, params, next(batches), rows[-1]["eval/loss_nats_per_token"]


def measure(
    cfg: config.Config, params: Params, batch: dict, plans: Sequence[config.RecomputeConfig]
) -> Iterator[dict]:
    """The rows of one model: each dtype's own error, and that of each plan in it."""
    num_blocks = cfg.model.num_blocks
    in_float32, _ = gradient(cfg, _EXACT, "float32")(params, batch)
    for dtype in _DTYPES.value:
        exact, _ = gradient(cfg, _EXACT, dtype)(params, batch)
        begin = time.monotonic()
        if dtype != "float32":
            own = compare(exact, in_float32)
            yield dict(num_blocks=num_blocks, dtype=dtype, plan="block", **own)
        for plan in plans:
            grads, errors_A2 = gradient(cfg, plan, dtype)(params, batch)
            assert errors_A2 is not None, "the plan is reversible"
            error, step = map(float, errors_A2.max(axis=0))
            yield dict(
                num_blocks=num_blocks,
                dtype=dtype,
                plan="reversible",
                anchor_blocks=plan.anchor_blocks,
                fixed_point_iterations=plan.fixed_point_iterations,
                error=error,
                step=step,
                error_bound=plan.error_bound,
                over=float(jnp.mean(jnp.any(~(errors_A2 < _ONE_PERCENT), axis=1))),
                **compare(grads, exact),
                worst_to_float32=compare(grads, in_float32)["worst"],
                seconds=time.monotonic() - begin,
            )


def main(_: list[str]) -> None:
    """Trains and measures what the flags say."""
    result_file.check("--json", _JSON.value)
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
            f"{'dtype':>9} {'anchors':>8} {'iterations':>12} {'error':>9} {'step':>9} "
            f"{'over':>9} {'all':>9} {'1 - cos':>9} {'worst':>9}"
        )
        for row in measure(cfg, params, batch, _plans(_CASES.value, num_blocks)):
            rows.append(row)
            print(describe(row), flush=True)
        if _JSON.value:
            result = {
                "rows": rows,
                "peak_lr": _PEAK_LR.value,
                "num_steps": _NUM_STEPS.value,
                **versions.describe(),
            }
            result_file.write_json(_JSON.value, result)


def _plans(cases: Sequence[str], num_blocks: int) -> list[config.RecomputeConfig]:
    """The plans of the cases "8:1", … (blocks of a stretch, iterations) that the depth allows."""
    pairs = [tuple(map(int, case.split(":"))) for case in cases]
    return [
        config.RecomputeConfig(
            plan="reversible",
            anchor_blocks=anchor_blocks,
            fixed_point_iterations=iterations,
            error_bound=_ERROR_BOUND.value,
        )
        for anchor_blocks, iterations in pairs
        if anchor_blocks <= num_blocks
    ]


def describe(row: dict) -> str:
    """One line of the table."""
    blank = "-"
    numbers = [
        f"{row[name]:9.1e}" if name in row else f"{blank:>9}"
        for name in ("error", "step", "over", "all", "one_minus_cosine", "worst")
    ]
    return (
        f"{row['dtype']:>9} {row.get('anchor_blocks', blank):>8} "
        f"{row.get('fixed_point_iterations', blank):>12} {' '.join(numbers)}"
    )


if __name__ == "__main__":
    _DATA = flags.DEFINE_string(
        "data", None, "Token shards, as of keel_jax.prepare.", required=True
    )
    _WORKDIR = flags.DEFINE_string(
        "workdir", None, "Directory of the trained models.", required=True
    )
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
    cli.run(main)
