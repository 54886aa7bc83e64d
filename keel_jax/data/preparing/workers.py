"""Worker processes that make the shards of a preparation."""

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
from keel_jax.data.preparing import corpus, shard_writing


class WorkerDied(RuntimeError):
    """A worker process was killed from outside, most often for its memory."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A work unit to be made, and where."""

    output: str
    number: int
    unit: corpus.WorkUnit
    settings: shard_writing.Settings
    max_bad_documents: int
    suffix: str

    def run(self, model: tokenizer.Tokenizer) -> tuple[int, dict]:
        return self.number, shard_writing.write_unit(
            epath.Path(self.output),
            self.number,
            self.unit,
            model,
            self.settings,
            max_bad_documents=self.max_bad_documents,
            temporary_suffix=self.suffix,
        )


@contextlib.contextmanager
def results(
    jobs: Sequence[Job], model: tokenizer.Tokenizer, num_workers: int
) -> Iterator[Iterator[tuple[int, dict]]]:
    """Sidecars of the jobs as they come, from this process or from workers."""
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
            f"One of {num_workers} worker processes died, most often for want of memory. Finished "
            "shards are kept: run the same command again, with fewer --workers or smaller "
            "--unit_bytes."
        ) from error
    finally:
        # On an error or Ctrl-C, what workers hold in hand is finished (seconds), the rest dropped.
        executor.shutdown(wait=True, cancel_futures=True)


_worker_model: tokenizer.Tokenizer | None = None


def _start_worker(model_path: str):
    """Runs once in each worker: loads the tokenizer, leaves Ctrl-C to the parent, dies with it."""
    global _worker_model
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that was killed leaves its workers waiting for work for ever.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _worker_model = tokenizer.Tokenizer.load(model_path)


def _run_in_worker(job: Job) -> tuple[int, dict]:
    return job.run(_worker_model)
