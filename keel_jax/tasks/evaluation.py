"""Scores a trained model on benchmarks."""

import pathlib

import jax
import rich.progress
from etils import epath

from keel_jax.inference import model as model_lib
from keel_jax.tasks import catalogue, loading, results, running
from keel_jax.training import checkpoint, trained


def evaluate(
    workdir: epath.PathLike,
    tasks: list[str],
    task_data: pathlib.Path,
    *,
    step: checkpoint.Step = None,
    num_shots: int | None = None,
    shot_seed: int = loading.DEFAULT_SEED,
    limit: int | None = None,
    options: running.Options | None = None,
    items: epath.PathLike | None = None,
    mesh: jax.sharding.Mesh | None = None,
    visible: bool = False,
) -> tuple[list[results.Result], int]:
    """(the scores of benchmarks, the checkpoint's step); on the lead of several processes.

    Args:
      tasks: names of benchmarks, of groups, or "all".
      task_data: folder of their files (docs/tasks.md).
      num_shots, shot_seed, limit: as of `loading.load`.
      items: directory of the grades of single items, from which a second call goes on; default:
        in the work directory.
      mesh: where to run; default: all devices.

    Raises:
      UserError: an unknown task, files that are missing or damaged, or items that cannot be scored:
        before any is.
    """
    read = [
        loading.load(declared, task_data, num_shots=num_shots, seed=shot_seed, limit=limit)
        for declared in catalogue.named(tasks)
    ]
    model = model_lib.Model(trained.load(workdir, mesh, step))
    number = model.trained.meta.step
    directory = epath.Path(items or epath.Path(workdir) / "tasks" / f"step_{number:08d}")
    runner = running.Runner(model, directory, options or running.Options())
    for loaded in read:
        runner.check(loaded)
    found = []
    with rich.progress.Progress(disable=not visible, transient=True) as progress:
        for loaded in read:
            bar = progress.add_task(loaded.task.name)
            found.append(
                runner.run(
                    loaded,
                    lambda done, total, bar=bar: progress.update(bar, completed=done, total=total),
                )
            )
    return [result for result in found if result is not None], number
