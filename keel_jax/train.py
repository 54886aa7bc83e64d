"""Trains a language model: `python -m keel_jax.train --config=FILE --workdir=DIR`.

Started again with the same directory, it resumes the run. --config.model.num_blocks=256 and the
like change any option. Exit codes: 0 done, 1 error (starting again would not help), 3 diverged, 6
not computed reliably, 75 stopped on request (SIGTERM, Ctrl-C) and saved, 76 hung or lost a peer:
after these two, start again. In several processes: docs/processes.md.
"""

import contextlib

import jax
from absl import flags
from etils import epath

from keel_jax import config
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.planning import chips, recompute_choice, resolve
from keel_jax.runtime import agreement, cli, distributed, exit_codes
from keel_jax.runtime import session as session_lib
from keel_jax.tasks import in_training
from keel_jax.training import checkpoint, events, inputs, loop, profiling, programs, start, trials
from keel_jax.training import logs as logs_lib
from keel_jax.training import progress as progress_lib
from keel_jax.training import status as status_lib
from keel_jax.training import telemetry_records as telemetry_lib
from keel_jax.training import workdir as workdir_lib


def train(cfg: config.Config, workdir: epath.PathLike) -> int:
    """Starts or resumes the run `cfg` in `workdir`; returns the exit code.

    Raises:
      UserError: a mistake in the options, the data or the directory, whose files are unchanged.
      OSError: a file could not be written; the newest complete checkpoint is unchanged.
    """
    with contextlib.ExitStack() as resources:
        session = resources.enter_context(session_lib.Session(cfg.runtime))
        clock = session.clock

        # The options, the data and the directory, checked against each other.
        agreement.check_options(cfg)
        tokens = inputs.open_inputs(cfg.data)
        asked = inputs.complete(cfg, tokens)
        mesh = mesh_lib.make(asked.mesh)
        inputs.check_sizes(asked, tokens, mesh)
        cfg = resolve.resolve(asked, mesh)
        examination = in_training.make(cfg, mesh, tokens.first.path / "tokenizer.model")
        workdir = resources.enter_context(workdir_lib.opened(workdir, asked))
        session.watchdog.workdir = workdir

        # The initial or restored state.
        checkpoints = checkpoint.Checkpoints(workdir, cfg.train)
        resources.enter_context(checkpoints)
        if (code := start.ended_before(asked, workdir, checkpoints)) is not None:
            return code
        meta = inputs.meta(asked, tokens)
        state, meta = start.begin(cfg, mesh, checkpoints, meta, clock)
        step = meta.step

        # The programs. From here on status.json records a failure.
        event_log = resources.enter_context(events.EventLog(workdir, clock, step))
        plan, is_chosen = resolve.predict(cfg, mesh), asked.model.recompute.plan == "auto"
        recompute = plan.to_json(is_chosen=is_chosen)
        status = status_lib.Status(workdir, cfg, recompute, session, event_log, meta.run_id)
        resources.enter_context(status)
        workdir_lib.describe(workdir, asked, tokens.first.path / "tokenizer.model")
        status.update(step)
        progress_lib.announce(cfg, step, recompute_choice.describe(plan, cfg, is_chosen=is_chosen))
        with clock.measure("compile"):
            compiled = programs.compile_all(cfg, mesh, tokens.first, session.stop_request.asked)
        if compiled is None:  # stopped; no step has been computed that could be lost
            return status.end(exit_codes.PREEMPTED, step, state)

        # Logs, telemetry and console output.
        directories = trials.directories(workdir, cfg)
        ids = trials.log_ids(meta.run_id, cfg)
        own_logs = logs_lib.Logs(directories, ids, step, cfg.train, meta.trial_steps)
        logs = resources.enter_context(own_logs)
        telemetry = telemetry_lib.Recorder(cfg, compiled.statistics, directories, step, logs, clock)

        training = loop.Loop(
            cfg=cfg,
            programs=compiled,
            batches=inputs.train_batches(cfg, tokens, mesh, step),
            logged=logs_lib.logged_at(directories, step),
            examination=examination,
            meta=meta,
            save=checkpoints.save,
            check_saved=checkpoints.check,
            write=logs.write,
            on_logged=status.update,
            telemetry=telemetry,
            progress=resources.enter_context(progress_lib.Progress(cfg.train.num_steps, step)),
            stop_asked=session.stop_request.asked,
            bytes_per_token=tokens.bytes_per_token,
            peak_flops=chips.total_peak_flops_per_second(),
            trace=profiling.StepTrace(cfg.train.profile_range, str(workdir / "tensorboard")),
            clock=clock,
        )
        with jax.transfer_guard("disallow"):
            code, step, state = training.run(state, step)
        with clock.measure("checkpoint_wait"):
            checkpoints.wait()
        session.stop_request.saved(status.end(code, step, state))
        if code in (exit_codes.DONE, exit_codes.DIVERGED):  # a stop request leaves no time for this
            telemetry.draw()
        return code


def main(_: list[str]) -> int:
    cfg = config.from_config_dict(_CONFIG.value)
    with distributed.program(distributed.from_flags()):
        return train(cfg, _WORKDIR.value)


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    distributed.define_flags()
    cli.run(main)
