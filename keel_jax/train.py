"""Trains a language model: `python -m keel_jax.train --config=FILE --workdir=DIR`.

Started again on the same directory, it goes on where it was. Any option can be changed on the
command line, as in `--config.model.num_blocks=256`. Exit codes: 0 done, 1 error (starting again
would not help), 3 diverged, 75 stopped on request (SIGTERM, Ctrl-C) and saved: start again, 76
hung or lost a peer: start again. In several processes: docs/processes.md.
"""

import contextlib
import dataclasses
import time

import jax
from absl import flags
from etils import epath
from ml_collections import config_flags

from keel_jax import config
from keel_jax.model import attention, lm
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import chips, closed_form, recompute_choice
from keel_jax.runtime import clock as clock_lib
from keel_jax.runtime import command, compilation, distributed, exit_codes, stop, watchdog
from keel_jax.training import (
    checkpoint,
    evaluation,
    inputs,
    loop,
    metrics,
    observation,
    start,
    telemetry,
)
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib
from keel_jax.training import workdir as workdir_lib

# What may take longer than a step.
_PAUSES = ("initialisation", "compile", "checkpoint_wait")


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
        pauses = dict.fromkeys(_PAUSES, cfg.runtime.pause_timeout_seconds)
        guard = watchdog.Watchdog(clock, cfg.runtime.step_timeout_seconds, pauses)
        resources.enter_context(guard)
        compilation.enable_cache(cfg.runtime.compilation_cache_dir)

        # The options, the data and the directory, checked against each other.
        with clock.measure("initialisation"):  # every checksum is read
            tokens = inputs.open_inputs(cfg.data)
        cfg = inputs.resolve(cfg, tokens)
        mesh = mesh_lib.make(cfg.mesh)
        inputs.check_sizes(cfg, tokens, mesh)
        kernel = attention.choose(cfg, mesh)
        choice = _recompute(cfg, mesh, kernel)
        workdir = workdir_lib.prepare(workdir, cfg)

        # The state, from wherever this run begins.
        with clock.measure("initialisation"):
            checkpoints = checkpoint.Checkpoints(workdir, cfg.train.keep_checkpoints)
            resources.enter_context(checkpoints)
            if (code := start.ended_before(cfg, workdir, checkpoints)) is not None:
                return code
            meta = inputs.meta(tokens)
            state, step = start.begin(cfg, mesh, checkpoints, meta)

        # The programs. From here on a failure is the run's, and status.json says so.
        status = workdir_lib.Status(workdir, cfg, kernel, choice.to_json(), clock, compilations)
        resources.enter_context(status)
        guard.on_hang = status.hung
        workdir_lib.describe(workdir, cfg, tokens.first.path / "tokenizer.model")
        status.say(step)
        _announce(cfg, step, kernel, choice)
        with clock.measure("compile"):
            planned = recompute_choice.with_plan(cfg, choice.recompute)
            train_step = _compiled("step", step_lib.compile_train_step, planned, mesh)
            look = None
            if cfg.telemetry.every_steps:
                look = _compiled("telemetry", observation.compile_statistics, planned, mesh)
            evaluator = evaluation.Evaluator(cfg, mesh, tokens.first)

        # What the loop tells, and to whom.
        lanes = workdir_lib.lane_directories(workdir, cfg)
        logs = resources.enter_context(metrics.Logs(lanes, step))
        recorder = telemetry.Recorder(cfg, look, lanes, step, logs, clock)
        progress = metrics.Progress(cfg.train.num_steps, step, visible=distributed.is_lead())
        resources.enter_context(progress)
        [is_evaluated] = distributed.from_lead(metrics.is_evaluated(lanes[0], step))
        peak = chips.peak_flops_per_second(jax.devices()[0])

        def save(step: int, state, diverged: bool):
            there = dataclasses.replace(
                meta, step=step, next_sample=step * cfg.train.batch_size, diverged=diverged
            )
            checkpoints.save(state, there)

        def on_logged(step: int):
            checkpoints.check()
            status.say(step)

        training = loop.Loop(
            cfg=cfg,
            train_step=train_step,
            batches=inputs.train_batches(cfg, tokens, mesh, step),
            evaluator=evaluator,
            is_evaluated=bool(is_evaluated),
            save=save,
            write=logs.write,
            on_logged=on_logged,
            telemetry=recorder,
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
        if code in (exit_codes.DONE, exit_codes.DIVERGED):  # others are in a hurry
            recorder.draw()
        return status.end(code, step, state)


def _recompute(cfg: config.Config, mesh: jax.sharding.Mesh, kernel: str) -> recompute_choice.Choice:
    """What the backward pass will compute again; the lead's memory decides for all processes."""
    state, device = state_lib.abstract(cfg, mesh), jax.local_devices()[0]
    shards = closed_form.shards(state.params, state, step_lib.abstract_batch(cfg, mesh))
    [mebibytes] = distributed.from_lead((chips.memory_bytes(device) or 0) >> 20)
    return recompute_choice.choose(
        cfg, dict(mesh.shape), shards, kernel, chips.known(device), mebibytes << 20 or None
    )


def _compiled(name: str, compile_program, cfg: config.Config, mesh: jax.sharding.Mesh):
    """A program of the run; where it came from, in one line."""
    begin = time.monotonic()
    with compilation.Counter() as counter:
        program = compile_program(cfg, mesh)
    source = "from the cache" if counter.hits and not counter.misses else "compiled anew"
    if distributed.is_lead():
        print(f"compiled {name}: {source} in {time.monotonic() - begin:.1f} s", flush=True)
    return program


def _announce(cfg: config.Config, step: int, kernel: str, choice: recompute_choice.Choice):
    """What is about to run, in one line."""
    if not distributed.is_lead():
        return
    m = cfg.model
    lanes = f", {cfg.num_lanes} lanes" if cfg.num_lanes > 1 else ""
    print(
        f"{m.topology}: {m.num_blocks} blocks = {m.num_sublayers} sub-layers, width {m.d_model}, "
        f"{lm.count_params(m):,} parameters{lanes}; steps {step} to {cfg.train.num_steps} of "
        f"{cfg.train.batch_size} x {cfg.train.seq_len} tokens on {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}, attention kernel {kernel}",
        flush=True,
    )
    blocks = m.num_blocks // (cfg.mesh.stage * cfg.mesh.dcn_stage)
    print(f"recompute: {recompute_choice.describe(choice, blocks)}", flush=True)


def main(_):
    cfg = config.from_config_dict(_CONFIG.value)
    with distributed.program(distributed.from_flags()):
        return train(cfg, _WORKDIR.value)


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file(
        "config", None, "Python file with get_config() (see experiments/configs).", lock_config=True
    )
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
    distributed.define_flags()
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main)
