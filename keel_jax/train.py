"""Trains a language model: `python -m keel_jax.train --config=FILE --workdir=DIR`.

Started again on the same directory, it goes on where it was. Any option can be changed on the
command line, as in `--config.model.num_blocks=256`. Exit codes: 0 done, 1 error (starting again
would not help), 3 diverged, 75 stopped on request (SIGTERM, Ctrl-C) and saved: start again.
"""

import contextlib
import dataclasses

import jax
from absl import flags
from etils import epath
from ml_collections import config_flags

from keel_jax import config
from keel_jax.model import lm
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import chips
from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import command, compilation, exit_codes, stop
from keel_jax.training import checkpoint, evaluation, inputs, loop, metrics, start
from keel_jax.training import step as step_lib
from keel_jax.training import workdir as workdir_lib


def train(cfg: config.Config, workdir: epath.PathLike) -> int:
    """Trains, or goes on training, the run `cfg` in `workdir`; returns the exit code.

    Raises:
      ValueError: a mistake in the options, the data or the directory; what was there is untouched.
      OSError: a file could not be written; the newest complete checkpoint is untouched.
    """
    with contextlib.ExitStack() as resources:
        clock = clock_lib.Clock()
        stop_request = resources.enter_context(stop.StopRequest())
        compilations = resources.enter_context(compilation.Counter())
        compilation.enable_cache(cfg.runtime.compilation_cache_dir)

        # Everything is checked before anything is written.
        tokens = inputs.open_inputs(cfg.data)
        cfg = inputs.with_vocab_size(cfg, tokens)
        mesh = mesh_lib.make(cfg.mesh)
        workdir = workdir_lib.prepare(workdir, cfg)
        run = workdir_lib.Status(workdir, cfg, clock, compilations)
        resources.enter_context(run)

        # The state, from wherever this run begins.
        meta = checkpoint.Meta(
            step=0,
            next_sample=0,
            data_fingerprint=tokens.fingerprint,
            tokenizer_fingerprint=tokens.first.tokenizer_fingerprint,
        )
        checkpoints = resources.enter_context(
            checkpoint.Checkpoints(workdir, cfg.train.keep_checkpoints)
        )
        with clock.measure("initialisation"):
            state, step = start.begin(cfg, mesh, checkpoints, meta)
        workdir_lib.describe(workdir, cfg, tokens.first.path / "tokenizer.model")
        run.say(step)
        if (code := _ended_before(cfg, state, step)) is not None:
            return run.end(code, step, state)

        _announce(cfg, step)
        with clock.measure("compile"):
            train_step = step_lib.compile_train_step(cfg, mesh)
            evaluator = evaluation.Evaluator(cfg, mesh, tokens.first)
        run.say(step)

        def save(step: int, state):
            next_sample = step * cfg.train.batch_size
            checkpoints.save(state, dataclasses.replace(meta, step=step, next_sample=next_sample))
            run.say(step)

        # The loop.
        lanes = workdir_lib.lane_directories(workdir, cfg)
        logs = resources.enter_context(metrics.Logs(lanes, step))
        progress = resources.enter_context(
            metrics.Progress(cfg.train.num_steps, step, visible=jax.process_index() == 0)
        )
        peak = chips.peak_flops_per_second(jax.devices()[0])
        training = loop.Loop(
            cfg=cfg,
            train_step=train_step,
            batches=inputs.train_batches(cfg, tokens, mesh, step),
            evaluator=evaluator,
            save=save,
            write=logs.write,
            progress=progress,
            stop_asked=stop_request.asked,
            bytes_per_token=tokens.bytes_per_token,
            peak_flops=peak and peak * jax.device_count(),
            trace_directory=str(workdir / "tensorboard"),
            clock=clock,
        )
        with jax.transfer_guard("disallow"):
            code, step, state = training.run(state, step)
        with clock.measure("checkpoint_wait"):
            checkpoints.wait()
        return run.end(code, step, state)


def _announce(cfg: config.Config, step: int):
    """What is about to run, in one line."""
    if jax.process_index() != 0:
        return
    m = cfg.model
    lanes = f", {cfg.num_lanes} lanes" if cfg.num_lanes > 1 else ""
    print(
        f"{m.topology}: {m.num_blocks} blocks = {m.num_sublayers} sub-layers, width {m.d_model}, "
        f"{lm.count_params(m):,} parameters{lanes}; steps {step} to {cfg.train.num_steps} of "
        f"{cfg.train.batch_size} x {cfg.train.seq_len} tokens on {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}",
        flush=True,
    )


def _ended_before(cfg: config.Config, state, step: int) -> int | None:
    """The exit code of a run that has nothing left to do, told; None if it has."""
    if jax.device_get(state.diverged).all():
        print(f"This run diverged after step {step}; start another --workdir, at a lower rate.")
        return exit_codes.DIVERGED
    if step >= cfg.train.num_steps:
        print(f"This run is done: step {step} of {cfg.train.num_steps}.")
        return exit_codes.DONE
    return None


def main(_):
    cfg = config.from_config_dict(_CONFIG.value)
    return train(cfg, _WORKDIR.value)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file(
        "config", None, "Python file with get_config() (see experiments/configs).", lock_config=True
    )
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; gs:// works with [gcs].")
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
