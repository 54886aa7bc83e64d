"""Compiles the real train step for devices that need not exist, and reports what it would need.

    python -m keel_jax.plan --config=FILE --topology=v5e:4x4 [--num_slices=2] [--json=FILE]
    python -m keel_jax.plan --config=FILE --topology=v5e:4x4 --search
    python -m keel_jax.plan --config=FILE --topology=h100:8x2      # two hosts of eight GPUs

Any option can be changed on the command line, as in `--config.model.num_blocks=256`. No data are
read, so the tokenizer is not known and `model.vocab_size` must be set. Exit codes: 0 the step fits
the chip's memory, 4 it does not, 1 error.
"""

import sys

import rich.console
from absl import flags

from keel_jax import config, errors
from keel_jax.parallel import topology
from keel_jax.planning import compile_step, report, report_json, report_text, search
from keel_jax.runtime import cli, compilation, exit_codes, result_file

# Stands for the number that the data would give; longer than any warm-up.
_STEPS_PER_EPOCH = 10**6


def main(_: list[str]) -> int:
    """Plans, prints, and writes the JSON; the exit code says whether the step fits."""
    result_file.check("--json", _JSON.value)
    target = topology.parse(_TOPOLOGY.value, _NUM_SLICES.value)
    target.configure_jax()
    # The memory assignment is read from files that a compilation writes, so the cache must be off.
    compilation.enable_cache("")
    # Epochs are as many steps as the data have, which changes nothing that is planned.
    cfg = config.from_config_dict(_CONFIG.value).in_steps(_STEPS_PER_EPOCH)
    if flags.FLAGS["search_limit"].present and not _SEARCH.value:
        raise errors.UserError(
            "--search_limit has no effect without --search: add it, or leave it out."
        )
    reports = _compile(cfg, target)
    if not reports:
        raise errors.UserError(
            f"No mesh of {target.name} can split this model and batch: change "
            "train.batch_size, or use another topology."
        )
    console = rich.console.Console(highlight=False)
    if _SEARCH.value:
        report_text.print_front(reports, cfg, console)
    report_text.print_report(reports[0], console)
    if _JSON.value:
        _write_json(reports, cfg, _JSON.value)
    return exit_codes.DONE if reports[0].fits else exit_codes.DOES_NOT_FIT


def _compile(cfg: config.Config, target: topology.Topology) -> list[report.Report]:
    """The plan of `cfg`, or the best plans of a search; progress is shown on stderr."""
    console = rich.console.Console(stderr=True)
    with console.status("compiling for " + target.name) as status:

        def show_progress(text: str):
            status.update(text)
            if not console.is_terminal:
                print(text, file=sys.stderr, flush=True)

        if _SEARCH.value:
            return search.search(cfg, target, _SEARCH_LIMIT.value, show_progress)
        return [compile_step.plan_step(cfg, target)]


def _write_json(reports: list[report.Report], cfg: config.Config, path: str) -> None:
    values = [report_json.to_json(each) for each in reports]
    for each, value in zip(reports, values, strict=True):
        value["plan"]["overrides"] = search.overrides(cfg, each.cfg)
    front = {"search": values} if _SEARCH.value else {}
    result_file.write_json(path, {**values[0], **front})


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    _TOPOLOGY = flags.DEFINE_string("topology", None, "v5e:4x4, h100:8, cpu:8, …", required=True)
    _NUM_SLICES = flags.DEFINE_integer(
        "num_slices", 1, "Slices of that TPU topology, over DCN.", lower_bound=1
    )
    _SEARCH = flags.DEFINE_boolean(
        "search", False, "Try meshes, microbatches and recomputation; fastest first."
    )
    _SEARCH_LIMIT = flags.DEFINE_integer(
        "search_limit", 6, "Plans that --search compiles.", lower_bound=1
    )
    _JSON = flags.DEFINE_string("json", None, "File for the result, as JSON.")
    cli.run(main)
