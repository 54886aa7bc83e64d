"""Preparing a token set: find the input, get the tokenizer, tokenize what is missing, index."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from keel_jax.data import shards, tokenizer
from keel_jax.data.preparing import (
    corpus,
    index_writing,
    output_directory,
    shared_tokenizer,
    sidecars,
    summary,
    workers,
)
from keel_jax.data.preparing import options as preparation_options
from keel_jax.runtime import files


def prepare_token_set(
    inputs: Sequence[str],
    output: epath.PathLike,
    options: preparation_options.PreparationOptions,
    *,
    on_progress: Callable[[summary.Progress], None] | None = None,
) -> summary.Summary:
    """Makes a token set of a corpus; run again after any interruption, it continues.

    Run again after it is done, it reads every shard once, compares checksums and rebuilds what is
    damaged. The result depends on the input, the tokenizer and the settings only, not on workers,
    hosts or interruptions. With several workers the calling program needs
    `if __name__ == "__main__"`.

    Args:
        inputs: globs, or "embedded" alone.
        output: directory; new, or one that the same call began.
        options: everything else.
        on_progress: called before the first unit and after each one.

    Raises:
        UserError: a bad input or option; a directory made from other input or settings.
        OSError: no space left, or the directory cannot be written.
        workers.WorkerDied: a worker was killed.
        TimeoutError: host 0 made no tokenizer in time.
    """
    begin = time.monotonic()
    output = epath.Path(output)
    source = corpus.discover(
        inputs, input_format=options.input_format, unit_bytes=options.unit_bytes
    )
    plan = output_directory.make_plan(source, options)
    suffix = output_directory.temporary_suffix(options.host_index)
    output_directory.claim(output, plan, options, suffix)
    finished = output_directory.open_if_finished(output)
    model = shared_tokenizer.obtain(output, plan, source, options, suffix)
    units = sidecars.UnitStatus(output, source, model, options)
    task = _Task(output, source, model, units, options, suffix)
    if finished is not None and _is_up_to_date(task, finished.index):
        outcome = summary.summarize(
            shards.open_set(output),
            state="already done",
            num_units=len(source.units),
            num_units_reused=len(source.units),
        )
    else:
        outcome = _complete(task, on_progress)
    return dataclasses.replace(outcome, seconds=time.monotonic() - begin)


@dataclasses.dataclass(frozen=True)
class _Task:
    """What the stages after the tokenizer work with."""

    output: epath.Path
    source: corpus.Corpus
    model: tokenizer.Tokenizer
    units: sidecars.UnitStatus
    options: preparation_options.PreparationOptions
    temporary_suffix: str

    def build_index(self, all_sidecars: Sequence[sidecars.Sidecar]) -> dict[str, Any]:
        return index_writing.build_index(
            all_sidecars, self.model, self.options.shard_settings, self.source
        )


def _is_up_to_date(task: _Task, index: Mapping[str, Any]) -> bool:
    """Whether all units are intact and the directory's index is the one that they make."""
    if task.units.missing:
        return False
    all_sidecars = task.units.all_sidecars()
    if all_sidecars is not None and index_writing.indices_agree(
        task.build_index(all_sidecars), index
    ):
        return True
    logging.warning("%s disagrees with the sidecars.", task.output / shards.INDEX_FILE)
    return False


def _complete(
    task: _Task, on_progress: Callable[[summary.Progress], None] | None
) -> summary.Summary:
    """Tokenizes this host's missing units; writes the index if no other host's are missing."""
    # The set is incomplete from here on: whatever happens, no index may claim otherwise.
    index_path = task.output / shards.INDEX_FILE
    index_path.unlink(missing_ok=True)
    num_units_reused = len(task.units.done)
    tokens_per_second = _tokenize_missing(task, on_progress)
    all_sidecars = task.units.all_sidecars()
    if all_sidecars is None:
        return summary.Summary(
            output=str(task.output),
            state="share done",
            num_units=len(task.units.own_numbers),
            num_units_reused=num_units_reused,
            tokens_per_second=tokens_per_second,
            vocab_size=task.model.vocab_size,
        )
    sidecars.check_num_bad(all_sidecars, task.options.max_bad_documents)
    index = task.build_index(all_sidecars)
    files.write_json(index_path, index, temporary_suffix=task.temporary_suffix)
    return summary.summarize(
        shards.open_set(task.output),
        state="done",
        num_units=len(task.source.units),
        num_units_reused=num_units_reused,
        tokens_per_second=tokens_per_second,
    )


def _tokenize_missing(task: _Task, on_progress: Callable[[summary.Progress], None] | None) -> float:
    """Tokenizes this host's missing units; returns tokens/s."""
    begin = time.monotonic()
    units, options = task.units, task.options
    unit_bytes = {number: task.source.units[number].num_bytes for number in units.own_numbers}
    num_new_tokens = 0

    def progress() -> summary.Progress:
        done = units.done
        return summary.Progress(
            num_units=len(unit_bytes),
            num_units_done=len(done),
            num_bytes=sum(unit_bytes.values()),
            num_bytes_done=sum(unit_bytes[number] for number in done),
            num_tokens_done=sum(map(sidecars.num_tokens, done.values())),
            num_new_tokens=num_new_tokens,
            seconds=time.monotonic() - begin,
        )

    report = on_progress or (lambda _: None)
    latest = progress()
    report(latest)
    jobs = [
        workers.Job(
            os.fspath(task.output),
            number,
            task.source.units[number],
            options.shard_settings,
            options.max_bad_documents,
            task.temporary_suffix,
        )
        for number in units.missing
    ]
    with workers.run_jobs(jobs, task.model, min(options.num_workers, len(jobs))) as results:
        for number, sidecar in results:
            units.add(number, sidecar)
            num_new_tokens += sidecars.num_tokens(sidecar)
            sidecars.check_num_bad(list(units.done.values()), options.max_bad_documents)
            latest = progress()
            report(latest)
    return latest.tokens_per_second
