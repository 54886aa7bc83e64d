"""The work of a preparation, in this process or in worker processes: one job for each unit."""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import process

from etils import epath

from keel_jax.data import shards, tokenizer
from keel_jax.data.preparing import corpus, shard_writing, sidecars
from keel_jax.data.preparing import options as preparation_options


class WorkerDied(RuntimeError):
    """A worker process was killed from outside, most often because memory ran out."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A work unit to tokenize into the directory `output`."""

    output: str
    number: int
    unit: corpus.WorkUnit
    settings: preparation_options.ShardSettings
    max_bad_documents: int
    temporary_suffix: str

    def run(self, model: tokenizer.Tokenizer) -> tuple[int, sidecars.Sidecar]:
        """Writes the unit's shards; returns its number and sidecar."""
        return self.number, shard_writing.write_unit(
            epath.Path(self.output),
            self.number,
            self.unit,
            model,
            self.settings,
            max_bad_documents=self.max_bad_documents,
            temporary_suffix=self.temporary_suffix,
        )


@contextlib.contextmanager
def run_jobs(
    jobs: Sequence[Job], model: tokenizer.Tokenizer, num_workers: int
) -> Iterator[Iterator[tuple[int, sidecars.Sidecar]]]:
    """Runs the jobs; gives an iterator of (unit number, sidecar) in the order they finish.

    Raises:
        WorkerDied: a worker process was killed.
    """
    if num_workers <= 1:
        yield (job.run(model) for job in jobs)
        return
    executor = process.ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.path.join(jobs[0].output, shards.TOKENIZER_FILE),),
    )
    try:
        futures = [executor.submit(_run_in_worker, job) for job in jobs]
        yield (future.result() for future in concurrent.futures.as_completed(futures))
    except process.BrokenProcessPool as error:
        raise WorkerDied(
            f"One of {num_workers} worker processes died, most often because memory ran out. "
            "Finished shards are kept: run the same command again, with fewer --workers or "
            "smaller --unit_bytes."
        ) from error
    finally:
        # After an error or Ctrl-C, jobs that have begun are finished (seconds), the rest dropped.
        executor.shutdown(wait=True, cancel_futures=True)


_worker_model: tokenizer.Tokenizer | None = None


def _start_worker(model_path: str) -> None:
    """Runs once in each worker: loads the tokenizer; Ctrl-C is the parent's to handle."""
    global _worker_model
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Without this, the workers of a parent that was killed would wait for work for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None, "_start_worker runs in a worker process"
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _worker_model = tokenizer.Tokenizer.load(model_path)


def _run_in_worker(job: Job) -> tuple[int, sidecars.Sidecar]:
    assert _worker_model is not None, "_start_worker has loaded it"
    return job.run(_worker_model)
