"""The compiled programs of a run: the train step, telemetry, and validation."""

import collections.abc
import dataclasses
import time

import jax

from keel_jax import config
from keel_jax.data import shards
from keel_jax.runtime import compilation, distributed
from keel_jax.training import evaluation, telemetry_step
from keel_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs, compiled for one mesh."""

    # (state, batch) -> (state, sums); donates the state.
    train_step: collections.abc.Callable
    # (state, batch) -> statistics of every sub-layer; None if telemetry is off.
    statistics: collections.abc.Callable | None
    evaluator: evaluation.Evaluator


def compile_all(
    cfg: config.Config,
    mesh: jax.sharding.Mesh,
    token_set: shards.TokenSet,
    stop_asked: collections.abc.Callable[[], bool],
) -> Programs | None:
    """Compiles them ahead of the first step, and prints for each whether the cache had it.

    Args:
      cfg: resolved (`planning.resolve`).
      token_set: the one whose validation split is read.
      stop_asked: called before each program.

    Returns:
      None if a stop was requested: it would otherwise have to wait for all of them.
    """
    if stop_asked():
        return None
    train_step = _compiled("step", step_lib.compile_train_step, cfg, mesh)
    statistics = None
    if cfg.telemetry.every_steps:
        if stop_asked():
            return None
        statistics = _compiled("telemetry", telemetry_step.compile_statistics, cfg, mesh)
    if stop_asked():
        return None
    return Programs(train_step, statistics, evaluation.Evaluator(cfg, mesh, token_set))


def _compiled(name: str, compile_program, cfg: config.Config, mesh: jax.sharding.Mesh):
    begin = time.monotonic()
    with compilation.Counter() as counter:
        program = compile_program(cfg, mesh)
    source = "from the cache" if counter.hits and not counter.misses else "compiled anew"
    if distributed.is_lead():
        print(f"compiled {name}: {source} in {time.monotonic() - begin:.1f} s", flush=True)
    return program
