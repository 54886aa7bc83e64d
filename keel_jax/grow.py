"""Makes a trained model deeper.

    python -m keel_jax.grow --workdir=OLD --output=NEW --num_blocks=M [--method=identity]

NEW gets the grown weights, the config, the tokenizer and the ancestry; nothing else is changed.
It is not a run: `evaluate` and `generate` accept it as --workdir, and a new run starts from it in a
directory of its own, with a new optimizer:

    python -m keel_jax.train --config=FILE --workdir=RUN
        --config.model.num_blocks=M --config.train.init_from=NEW

Methods (what each keeps, and what alpha should be: docs/growing.md):
  identity    M - N new blocks that add nothing yet, between the old ones; the function is kept
  interleave  every block repeated in place
  stack       the stack repeated
"""

import dataclasses

import jax
from absl import flags
from etils import epath

from keel_jax import config, errors
from keel_jax.model import growth as growth_lib
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import cli, distributed, files, result_file, versions
from keel_jax.training import ancestry, checkpoint, trained, verification
from keel_jax.training import state as state_lib
from keel_jax.training import workdir as workdir_lib


def grow(
    workdir: epath.PathLike,
    output: epath.PathLike,
    *,
    num_blocks: int,
    method: str,
    position: str = "spread",
    keep_alpha: bool = False,
    step: checkpoint.Step = None,
) -> dict:
    """Grows the model of `workdir` and writes it to the new or empty directory `output`.

    Peak memory: the grown weights and one leaf of the old ones, once each.

    Args:
      workdir: of a run, of one of its trials, or an earlier `output`.
      method, position, keep_alpha: see `growth.plan`.
      step: of the checkpoint.

    Returns:
      The entry that `ancestry.json` gets for it.

    Raises:
      UserError: no such checkpoint, `num_blocks` is not larger, the topology does not allow this
        growth, or `output` is not empty or in use.
      OSError: it could not be written; `output` then has no config.json and cannot be read.
    """
    workdir, output = epath.Path(workdir), epath.Path(output)
    cfg = checkpoint.load_config(workdir)
    growth = growth_lib.plan(
        cfg.model, num_blocks, method, position=position, keep_alpha=keep_alpha
    )
    verification.check_path(output)
    with workdir_lib.claimed(files.make_writable_directory(output)):
        workdir_lib.check_empty(output, "--output")
        mesh = mesh_lib.make(mesh_lib.widest(cfg.model))
        params, meta = trained.load_params(workdir, mesh, step)
        grown_cfg = dataclasses.replace(cfg, model=growth.new)
        params = _grown(params, growth, state_lib.abstract(grown_cfg, mesh).params)

        alpha, alpha_after = growth.alphas
        how = {"position": position} if method == "identity" else {}
        ancestor = ancestry.entry(
            "grow",
            workdir,
            meta.step,
            cfg.model,
            num_blocks_after=num_blocks,
            method=method,
            **how,
            keeps_function=growth.keeps_function,
            alpha=alpha,
            alpha_after=alpha_after,
            tokens=meta.step * cfg.train.tokens_per_step,
            versions=versions.describe()["packages"],
        )
        with checkpoint.Checkpoints(output, cfg.train) as checkpoints:
            model = config.model_options(grown_cfg)
            meta = dataclasses.replace(meta, model=model, validations=None, trial_steps=None)
            checkpoints.save_weights(params, meta)
        ancestry.record(output, [*ancestry.read(workdir), ancestor])
        if distributed.is_lead():
            tokenizer = workdir / "tokenizer.model"
            files.write_bytes(output / tokenizer.name, tokenizer.read_bytes())
            # Written last: no entry point accepts the directory without it.
            files.write_checked_json(output / checkpoint.CONFIG, config.to_dict(grown_cfg))
    return ancestor


def _grown(params, growth: growth_lib.Growth, like):
    """The new tree, sharded as `like`; each old leaf is deleted as soon as the new one exists."""

    def run(make, leaf, wanted):
        grown = jax.block_until_ready(jax.jit(make, out_shardings=wanted.sharding)(leaf))
        leaf.delete()
        return grown

    return growth_lib.grow(growth, params, like, run)


def main(_: list[str]) -> None:
    with distributed.program(distributed.from_flags()):
        _grow()


def _grow():
    if distributed.is_lead():
        result_file.check("--json", _JSON.value)
    if flags.FLAGS["position"].present and _METHOD.value != "identity":
        raise errors.UserError(
            f"--position={_POSITION.value} has no effect with --method={_METHOD.value}, which "
            "copies every block: leave it out, or use --method=identity."
        )
    ancestor = grow(
        _WORKDIR.value,
        _OUTPUT.value,
        num_blocks=_NUM_BLOCKS.value,
        method=_METHOD.value,
        position=_POSITION.value,
        keep_alpha=_ALPHA.value == "keep",
        step=_STEP.value,
    )
    if not distributed.is_lead():
        return
    fixed = f" --config.model.alpha={ancestor['alpha_after']:g}" if _ALPHA.value == "keep" else ""
    kept = "kept" if ancestor["keeps_function"] else "changed"
    print(
        f"{ancestor['source']}, step {ancestor['step']}: {ancestor['num_blocks']} blocks grown to "
        f"{ancestor['num_blocks_after']} ({ancestor['method']}), alpha {ancestor['alpha']:g} -> "
        f"{ancestor['alpha_after']:g}, function {kept} -> {_OUTPUT.value}\n"
        f"train it with --config.model.num_blocks={ancestor['num_blocks_after']}{fixed} "
        f"--config.train.init_from={_OUTPUT.value}"
    )
    result_file.write_json(_JSON.value, ancestor)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _OUTPUT = flags.DEFINE_string("output", None, "New or empty directory.", required=True)
    _NUM_BLOCKS = flags.DEFINE_integer("num_blocks", None, "M, the new depth.", required=True)
    _METHOD = flags.DEFINE_enum("method", "identity", growth_lib.METHODS, "See above.")
    _POSITION = flags.DEFINE_enum(
        "position",
        "spread",
        growth_lib.POSITIONS,
        "Where identity puts new blocks: between the old ones, or after the last.",
    )
    _ALPHA = flags.DEFINE_enum(
        "alpha", "new", ["new", "keep"], "The stream's weight: the new depth's, or the old one."
    )
    _STEP = cli.define_step()
    _JSON = flags.DEFINE_string("json", None, "Also write what was done to this file.")
    distributed.define_flags()
    cli.run(main)
