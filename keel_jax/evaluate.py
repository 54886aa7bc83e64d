"""Measures a trained model on a validation split: `python -m keel_jax.evaluate --workdir=DIR`."""

import dataclasses
import json
import pathlib

import jax
import rich.progress
from absl import flags
from etils import epath

from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import command, compilation, distributed
from keel_jax.training import checkpoint, evaluation, inputs, metrics


def evaluate(
    workdir: epath.PathLike,
    *,
    step: int | None = None,
    data_path: str | None = None,
    batch_size: int | None = None,
    seq_len: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    visible: bool = False,
) -> dict[str, float]:
    """Loss over the whole validation split, every token once but the first.

    Each window of `seq_len` tokens begins without context, so a longer one lowers the loss.

    Args:
      workdir: of a run, or of one of its lanes.
      data_path: other token shards than the run's own, of the same tokenizer.
      mesh: where to run; default: over all devices here, whatever the run was trained on.
      visible: show a progress bar.

    Returns:
      "loss_nats_per_token", "perplexity", "bits_per_byte", "accuracy", "num_tokens", "step".

    Raises:
      ValueError: no such checkpoint, or shards of another tokenizer.
    """
    cfg = checkpoint.load_config(workdir)
    compilation.enable_cache(cfg.runtime.compilation_cache_dir)
    data = dataclasses.replace(cfg.data, path=data_path or cfg.data.path, weights=())
    train = dataclasses.replace(
        cfg.train,
        batch_size=batch_size or cfg.train.batch_size,
        seq_len=seq_len or cfg.train.seq_len,
        accumulation_steps=1,
        num_tokens=None,
    )
    # The run's kernel may not be here.
    model = dataclasses.replace(cfg.model, attention="auto")
    cfg = dataclasses.replace(cfg, model=model, data=data, train=train)
    if mesh is None:
        mesh = mesh_lib.make(mesh_lib.widest(cfg.model))
    params, meta = checkpoint.load_params(workdir, mesh, step)
    tokens = inputs.open_inputs(cfg.data)
    if tokens.first.tokenizer_fingerprint != meta.tokenizer_fingerprint:
        raise ValueError(
            f"{tokens.first.path} was made with tokenizer {tokens.first.tokenizer_fingerprint[:12]}"
            f", the checkpoint was trained with {meta.tokenizer_fingerprint[:12]}: prepare the "
            f"text with --tokenizer={workdir}/tokenizer.model."
        )
    evaluator = evaluation.Evaluator(cfg, mesh, tokens.first)

    def told(batches):
        return rich.progress.track(
            batches, "evaluating", total=evaluator.num_batches, disable=not visible, transient=True
        )

    [sums] = evaluator.run(params, told=told)
    split = tokens.first.split("validation")
    found = metrics.loss_metrics("eval", sums, split.loss_bytes_per_token)
    return {
        "loss_nats_per_token": found["eval/loss_nats_per_token"],
        "perplexity": found["eval/perplexity"],
        "bits_per_byte": found["eval/bits_per_byte"],
        "accuracy": found["eval/accuracy"],
        "num_tokens": split.num_targets,
        "step": meta.step,
    }


def main(_):
    with distributed.program(distributed.from_flags()):
        _evaluate()


def _evaluate():
    found = evaluate(
        _WORKDIR.value,
        step=_STEP.value,
        data_path=_DATA_PATH.value,
        batch_size=_BATCH_SIZE.value,
        seq_len=_SEQ_LEN.value,
        visible=distributed.is_lead(),
    )
    if not distributed.is_lead():
        return
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=2) + "\n")
    print(
        f"step {found['step']}: {found['loss_nats_per_token']:.4f} nats/token, perplexity "
        f"{found['perplexity']:.2f}, {found['bits_per_byte']:.4f} bits/byte, accuracy "
        f"{found['accuracy']:.4f} over {found['num_tokens']:,} tokens"
    )


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _STEP = flags.DEFINE_integer("step", None, "Checkpoint; default: the newest.")
    _DATA_PATH = flags.DEFINE_string("data_path", None, "Token shards; default: the run's own.")
    _BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Rows at a time; default: the run's.")
    _SEQ_LEN = flags.DEFINE_integer("seq_len", None, "Tokens a row; default: the run's.")
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    distributed.define_flags()
    command.run(main)
