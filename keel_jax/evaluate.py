"""Measures a trained model on a validation split: `python -m keel_jax.evaluate --workdir=DIR`."""

import dataclasses
from typing import Any

import jax
import rich.progress
from absl import flags
from etils import epath

from keel_jax.inference import comparison
from keel_jax.runtime import agreement, cli, distributed, result_file
from keel_jax.training import checkpoint, evaluation, init_from, metrics, trained

# Flags that must be the same in several processes.
_SAME = ("workdir", "step", "batch_size", "seq_len", "before")


def evaluate(
    workdir: epath.PathLike,
    *,
    step: checkpoint.Step = None,
    data_path: str | None = None,
    batch_size: int | None = None,
    seq_len: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    visible: bool = False,
) -> dict[str, float]:
    """Loss over the whole validation split, each token but the first exactly once.

    Each window of `seq_len` tokens begins without context, so a longer one lowers the loss.

    Args:
      workdir: of a run, or of one of its trials.
      data_path: token shards to use instead of the run's own, made with the same tokenizer.
      mesh: where to run; default: all local devices, independent of what the run was trained on.
      visible: show a progress bar.

    Returns:
      "loss_nats_per_token", "perplexity", "bits_per_byte", "accuracy", "num_tokens", "step".

    Raises:
      UserError: no such checkpoint, shards made with another tokenizer, or a `batch_size` or
        `seq_len` below 1.
    """
    model = trained.load(workdir, mesh, step)
    train = dataclasses.replace(
        model.cfg.train,
        batch_size=model.cfg.train.batch_size if batch_size is None else batch_size,
        seq_len=model.cfg.train.seq_len if seq_len is None else seq_len,
        accumulation_steps=1,
        num_tokens=0,
    )
    tokens = model.open_data(data_path)
    evaluator = evaluation.Evaluator(
        dataclasses.replace(model.cfg, train=train), model.mesh, tokens.first
    )

    def with_progress(batches):
        return rich.progress.track(
            batches, "evaluating", total=evaluator.num_batches, disable=not visible, transient=True
        )

    sums = evaluator.run(model.params, with_progress=with_progress)
    assert sums is not None  # no stop was requested
    split = tokens.first.split("validation")
    measured = metrics.loss_metrics("eval", sums[0], split.loss_bytes_per_token)
    return {
        "loss_nats_per_token": measured["eval/loss_nats_per_token"],
        "perplexity": measured["eval/perplexity"],
        "bits_per_byte": measured["eval/bits_per_byte"],
        "accuracy": measured["eval/accuracy"],
        "num_tokens": split.num_targets,
        "step": model.meta.step,
    }


def evaluate_before(
    workdir: epath.PathLike,
    before: str,
    *,
    step: checkpoint.Step = None,
    data_path: str | None = None,
    seq_len: int | None = None,
    **options: Any,
) -> dict[str, float]:
    """`evaluate` of another model, on the data and in the windows of `evaluate(workdir, …)`.

    Args:
      before: "DIR" or "DIR/checkpoints/STEP", as for `train.init_from`.
      options: those of `evaluate`.

    Raises:
      UserError: as `evaluate`; the two models have different tokenizers.
    """
    cfg = trained.load_own_config(workdir, step)
    other, other_step = init_from.parse_checkpoint(before)
    data_path = data_path or cfg.data.path
    seq_len = cfg.train.seq_len if seq_len is None else seq_len
    return evaluate(other, step=other_step, data_path=data_path, seq_len=seq_len, **options)


def main(_: list[str]) -> None:
    with distributed.program(distributed.from_flags()):
        _evaluate()


def _evaluate():
    if distributed.is_lead():
        result_file.check("--json", _JSON.value)
    same = {f"--{name}": flags.FLAGS[name].value for name in _SAME}
    agreement.check(same, "with different flags", "Start all of them with the same command")
    options: dict[str, Any] = {
        "step": _STEP.value,
        "data_path": _DATA_PATH.value,
        "batch_size": _BATCH_SIZE.value,
        "seq_len": _SEQ_LEN.value,
        "visible": distributed.is_lead(),
    }
    before = None
    if _BEFORE.value:  # first: what it refuses need not wait for the other
        before = evaluate_before(_WORKDIR.value, _BEFORE.value, **options)
    result = evaluate(_WORKDIR.value, **options)
    if not distributed.is_lead():
        return
    print(
        f"step {result['step']}: {result['loss_nats_per_token']:.4f} nats/token, perplexity "
        f"{result['perplexity']:.2f}, {result['bits_per_byte']:.4f} bits/byte, accuracy "
        f"{result['accuracy']:.4f} over {result['num_tokens']:,} tokens"
    )
    if before:
        print(comparison.table({"before": before, "after": result}))
        result_file.write_json(_JSON.value, {"before": before, "after": result})
    else:
        result_file.write_json(_JSON.value, result)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _STEP = cli.define_step()
    _DATA_PATH = flags.DEFINE_string("data_path", None, "Token shards; default: the run's own.")
    _BATCH_SIZE = flags.DEFINE_integer(
        "batch_size", None, "Rows at a time; default: the run's.", lower_bound=1
    )
    _SEQ_LEN = flags.DEFINE_integer(
        "seq_len", None, "Tokens a row; default: the run's.", lower_bound=1
    )
    _BEFORE = flags.DEFINE_string(
        "before",
        None,
        "Another run, or a checkpoint of it (DIR/checkpoints/STEP), such as the one that was "
        "fine-tuned here: both are measured on the same data and printed side by side.",
    )
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    distributed.define_flags()
    cli.run(main)
