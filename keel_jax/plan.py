"""Compiles the real train step for devices that need not be there, and says what it would take.

    python -m keel_jax.plan --config=FILE --topology=v5e:4x4 [--num_slices=2] [--json=FILE]
    python -m keel_jax.plan --config=FILE --topology=v5e:4x4 --search

Any option can be changed on the command line, as in `--config.model.num_blocks=256`. No data are
read; what tokenizer will be used is not known, so `model.vocab_size` must be set. Exit codes: 0 the
step fits the chip's memory, 4 it does not, 1 error.
"""

import dataclasses
import functools
import sys

import jax
import rich.box
import rich.console
import rich.table
from absl import flags
from etils import epath

from keel_jax import config, errors
from keel_jax.model import attention
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.parallel import topology
from keel_jax.planning import chips, cost_model, recompute_choice, report, resolve, search
from keel_jax.runtime import cli, compilation, exit_codes, files
from keel_jax.training import state as state_lib
from keel_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class _Target:
    """The devices that a plan is for."""

    name: str
    num_slices: int

    @functools.cached_property
    def devices(self) -> list[jax.Device]:
        return topology.devices(self.name, self.num_slices)

    @property
    def chip(self) -> chips.Chip | None:
        return chips.chip(self.devices[0])

    def mesh(self, cfg: config.Config) -> jax.sharding.Mesh:
        simulated = self.num_slices if self.name.startswith("cpu") else None
        return mesh_lib.make(cfg.mesh, self.devices, simulated)


def plan(cfg: config.Config, name: str, num_slices: int = 1) -> report.Report:
    """Compiles the step of `cfg` for topology `name` and looks at the program.

    Raises:
      UserError: no such topology, an unknown chip, no vocabulary, or sizes that do not fit.
    """
    _check(cfg)
    target = _Target(name, num_slices)
    mesh = target.mesh(cfg)
    is_chosen = cfg.model.recompute.plan == "auto"
    cfg = resolve.resolve(cfg, mesh)
    lowered = step_lib.lower_train_step(cfg, mesh)
    return report.compile_and_measure(
        lowered, cfg, mesh, target.chip, name, num_slices, is_chosen=is_chosen
    )


def find(cfg: config.Config, name: str, num_slices: int, limit: int, tell) -> list[report.Report]:
    """Compiles the most promising plans, at most `limit`; the Pareto front, fastest first."""
    _check(cfg)
    target = _Target(name, num_slices)
    states, costs = {}, []  # the state's shards by mesh
    for candidate in search.candidates(cfg, len(target.devices), num_slices):
        try:
            mesh = target.mesh(candidate)
            candidate = attention.resolve(candidate, mesh)
            batch = step_lib.abstract_batch(candidate, mesh)
            if candidate.mesh not in states:
                states[candidate.mesh] = state_lib.abstract(candidate, mesh)
            state = states[candidate.mesh]
            shards = cost_model.shards(state.params, state, batch)
            for plan_ in recompute_choice.candidates(candidate, dict(mesh.shape), target.chip):
                planned = recompute_choice.with_plan(candidate, plan_)
                costs.append((planned, search.cost(planned, mesh, target.chip, shards)))
        except ValueError:
            continue  # sizes, or a kernel, that this mesh cannot have
    chosen = search.most_promising(costs, target.chip, limit)
    found = []
    for index, candidate in enumerate(chosen):
        tell(f"plan {index + 1} of {len(chosen)}: {' '.join(search.overrides(cfg, candidate))}")
        found.append(plan(candidate, name, num_slices))
    return search.front(found)


def _check(cfg: config.Config):
    if not cfg.model.vocab_size:
        raise errors.UserError(
            "model.vocab_size is not set, and the plan reads no data: give the tokenizer's, as in "
            "--config.model.vocab_size=32768."
        )


def main(_) -> int:
    topology.prepare(_TOPOLOGY.value)
    # The assignment of memory is read from what a compilation writes: none may come from a cache.
    compilation.enable_cache("")
    cfg = config.from_config_dict(_CONFIG.value)
    if flags.FLAGS["search_limit"].present and not _SEARCH.value:
        raise errors.UserError(
            "--search_limit has no effect without --search: add it, or leave it out."
        )
    console = rich.console.Console(stderr=True)
    with console.status("compiling for " + _TOPOLOGY.value) as status:

        def tell(text):
            status.update(text)
            if not console.is_terminal:
                print(text, file=sys.stderr, flush=True)

        if _SEARCH.value:
            found = find(cfg, _TOPOLOGY.value, _NUM_SLICES.value, _SEARCH_LIMIT.value, tell)
        else:
            found = [plan(cfg, _TOPOLOGY.value, _NUM_SLICES.value)]
    if not found:
        raise errors.UserError(
            f"No mesh of {_TOPOLOGY.value} can split this model and batch: change "
            "train.batch_size, or take another topology."
        )
    _print(found, cfg)
    if _JSON.value:
        values = [result.to_json() for result in found]
        for result, value in zip(found, values, strict=True):
            value["plan"]["overrides"] = search.overrides(cfg, result.cfg)
        front = {"search": values} if _SEARCH.value else {}
        files.write_json(epath.Path(_JSON.value), {**values[0], **front})
    return exit_codes.DONE if found[0].fits else exit_codes.DOES_NOT_FIT


def _print(found: list[report.Report], cfg: config.Config):
    console = rich.console.Console(highlight=False)
    if not _SEARCH.value:
        report.show(found[0], console)
        return
    table = rich.table.Table(box=rich.box.SIMPLE)
    for head in ("fits", "HBM GiB", "estimated step s", "tokens/s", "overrides"):
        table.add_column(head, overflow="fold")
    for result in found:
        estimate = result.estimate
        table.add_row(
            "yes" if result.fits else "no",
            f"{result.total_bytes / 2**30:.2f}",
            f"{estimate.step_seconds:.3g}" if estimate else "-",
            f"{result.tokens_per_second:,.0f}" if estimate else "-",
            " ".join(search.overrides(cfg, result.cfg)),
        )
    console.print(table)
    report.show(found[0], console)


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    _TOPOLOGY = flags.DEFINE_string("topology", None, "v5e:4x4, v5p:4x4x4, cpu:8, …")
    _NUM_SLICES = flags.DEFINE_integer("num_slices", 1, "Slices of that topology, over DCN.")
    _SEARCH = flags.DEFINE_boolean(
        "search", False, "Try meshes, microbatches and recomputation; fastest first."
    )
    _SEARCH_LIMIT = flags.DEFINE_integer(
        "search_limit", 6, "Plans that --search compiles.", lower_bound=1
    )
    _JSON = flags.DEFINE_string("json", None, "File for the result, as JSON.")
    flags.mark_flags_as_required(["topology"])
    cli.run(main)
