"""Measures a trained model: its loss on a validation split, or its scores on benchmarks.

`python -m keel_jax.evaluate --workdir=DIR` measures the loss;
`python -m keel_jax.evaluate --workdir=DIR --tasks=piqa,gsm8k --task_data=FOLDER` scores tasks.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import rich.progress
from absl import flags
from etils import epath

from keel_jax import errors
from keel_jax.inference import comparison
from keel_jax.runtime import agreement, cli, distributed, result_file
from keel_jax.tasks import catalogue, loading, results, running, summary
from keel_jax.tasks import evaluation as task_evaluation
from keel_jax.training import checkpoint, evaluation, init_from, metrics, trained

# Flags that must be the same in several processes.
_SAME = (
    "workdir", "step", "before", "batch_size", "seq_len", "tasks", "num_shots", "shot_seed",
    "limit", "num_samples", "temperature", "seed", "num_tokens", "run_code",
)  # fmt: skip
# Flags that mean nothing without --tasks, or with them.
_OF_TASKS = (
    "task_data", "num_shots", "shot_seed", "limit", "num_samples", "temperature", "seed",
    "num_tokens", "run_code", "allow_root", "figure", "items",
)  # fmt: skip
_OF_LOSS = ("data_path", "seq_len")


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
    _check_flags()
    with distributed.program(distributed.from_flags()):
        if distributed.is_lead():
            result_file.check("--json", _JSON.value)
            result_file.check("--figure", _FIGURE.value)
        same = {f"--{name}": flags.FLAGS[name].value for name in _SAME}
        agreement.check(same, "with different flags", "Start all of them with the same command")
        result = _scored_tasks() if _TASKS.value else _measured_loss()
        if distributed.is_lead():
            result_file.write_json(_JSON.value, result)


def _check_flags() -> None:
    """Refuses flags that nothing would read."""
    unread = _OF_LOSS if _TASKS.value else _OF_TASKS
    given = [f"--{name}" for name in unread if flags.FLAGS[name].present]
    if given:
        raise errors.UserError(
            f"{', '.join(given)}: read only {'without' if _TASKS.value else 'with'} --tasks."
        )
    if _TASKS.value and not _TASK_DATA.value:
        raise errors.UserError("--tasks needs --task_data, the folder of the benchmarks' files.")


def _measured_loss() -> dict[str, Any]:
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
    if distributed.is_lead():
        print(
            f"step {result['step']}: {result['loss_nats_per_token']:.4f} nats/token, perplexity "
            f"{result['perplexity']:.2f}, {result['bits_per_byte']:.4f} bits/byte, accuracy "
            f"{result['accuracy']:.4f} over {result['num_tokens']:,} tokens"
        )
    return _beside(before, result, lambda measured: measured)


def _scored_tasks() -> dict[str, Any]:
    before = None
    if _BEFORE.value:
        workdir, step = init_from.parse_checkpoint(_BEFORE.value)
        before = _scores(workdir, step, "before")
    return _beside(before, _scores(_WORKDIR.value, _STEP.value, "after"), results.headlines)


def _scores(workdir: epath.PathLike, step: checkpoint.Step, which: str) -> dict[str, Any]:
    """The scores of one model, printed; `which` of two tells their files of items apart."""
    items = _ITEMS.value and _BEFORE.value and epath.Path(_ITEMS.value) / which or _ITEMS.value
    found, number = task_evaluation.evaluate(
        workdir,
        _TASKS.value,
        pathlib.Path(_TASK_DATA.value or ""),
        step=step,
        num_shots=_NUM_SHOTS.value,
        shot_seed=_SHOT_SEED.value,
        limit=_LIMIT.value,
        options=running.Options(
            batch_size=_BATCH_SIZE.value or running.Options.batch_size,
            num_samples=_NUM_SAMPLES.value,
            temperature=_TEMPERATURE.value,
            seed=_SEED.value,
            num_tokens=_NUM_TOKENS.value,
            may_run_code=_RUN_CODE.value,
            may_run_as_root=_ALLOW_ROOT.value,
        ),
        items=items,
        visible=distributed.is_lead(),
    )
    if distributed.is_lead():
        print(f"{workdir}, step {number}\n{summary.table(found)}")
        if _LIMIT.value:
            print(f"Only the first {_LIMIT.value} items of each subject: not a benchmark's score.")
        if _FIGURE.value and which == "after":
            title = f"{workdir}, step {number}"
            epath.Path(_FIGURE.value).write_bytes(summary.draw(found, title))
    return {"step": number, "limit": _LIMIT.value, **results.as_json(found)}


def _beside(
    before: dict[str, Any] | None,
    result: dict[str, Any],
    numbers: Callable[[dict[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """What is written as JSON; of two models, their `numbers` are printed side by side."""
    if before is None:
        return result
    if distributed.is_lead():
        print(comparison.table({"before": numbers(before), "after": numbers(result)}))
    return {"before": before, "after": result}


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    _STEP = cli.define_step()
    _DATA_PATH = flags.DEFINE_string("data_path", None, "Token shards; default: the run's own.")
    _BATCH_SIZE = flags.DEFINE_integer(
        "batch_size", None, "Rows at a time; default: the run's, of tasks 16.", lower_bound=1
    )
    _SEQ_LEN = flags.DEFINE_integer(
        "seq_len", None, "Tokens a row; default: the run's.", lower_bound=1
    )
    _TASKS = flags.DEFINE_list(
        "tasks", [], f"Benchmarks, sets of them ({', '.join(catalogue.GROUPS)}), or all."
    )
    _TASK_DATA = flags.DEFINE_string("task_data", None, "Folder of the benchmarks' files.")
    _NUM_SHOTS = flags.DEFINE_integer(
        "num_shots", None, "Examples in each prompt; default: each benchmark's.", lower_bound=0
    )
    _SHOT_SEED = flags.DEFINE_integer("shot_seed", loading.DEFAULT_SEED, "Of drawn examples.")
    _LIMIT = flags.DEFINE_integer(
        "limit", None, "Only so many items of each subject: a first look.", lower_bound=1
    )
    _NUM_SAMPLES = flags.DEFINE_integer(
        "num_samples", 1, "Generated answers an item; several are drawn.", lower_bound=1
    )
    _TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Of several answers.", lower_bound=0)
    _SEED = flags.DEFINE_integer("seed", 0, "Of several answers.")
    _NUM_TOKENS = flags.DEFINE_integer(
        "num_tokens",
        None,
        "Of a generated answer, at most; default: each benchmark's.",
        lower_bound=1,
    )
    _RUN_CODE = flags.DEFINE_bool(
        "run_code", False, "Run programs that the model wrote, confined (docs/tasks.md)."
    )
    _ALLOW_ROOT = flags.DEFINE_bool("allow_root", False, "Run them even when you are root.")
    _ITEMS = flags.DEFINE_string(
        "items", None, "Directory of single items' grades; default: in the work directory."
    )
    _FIGURE = flags.DEFINE_string("figure", None, "Also draw the scores into this PNG file.")
    _BEFORE = flags.DEFINE_string(
        "before",
        None,
        "Another run, or a checkpoint of it (DIR/checkpoints/STEP), such as the one that was "
        "fine-tuned here: both are measured on the same data, or scored on the same tasks, and "
        "printed side by side.",
    )
    _JSON = flags.DEFINE_string("json", None, "Also write the result to this file.")
    distributed.define_flags()
    cli.run(main)
