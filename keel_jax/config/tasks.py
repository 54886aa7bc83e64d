"""The options of the benchmarks that are scored during training."""

import dataclasses

from keel_jax import errors
from keel_jax.config import limits
from keel_jax.config.options import Change, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """Which benchmarks are scored while a run trains, and when; docs/tasks.md."""

    # Names of benchmarks or of sets of them; only those that are scored by likelihoods.
    names: tuple[str, ...] = option((), Change.RESULTS)
    # Folder of their files.
    data: str = option("", Change.NOTHING)
    # Steps from one time to the next; 0: at the run's end alone.
    every_steps: int = option(0, Change.RESULTS)
    # Of each subject, only so many items; 0: all.
    limit: int = option(0, Change.RESULTS)
    # Rows at a time.
    batch_size: int = option(16, Change.NOTHING)

    def __post_init__(self):
        limits.at_least("tasks.every_steps", self.every_steps, 0)
        limits.at_least("tasks.limit", self.limit, 0)
        limits.at_least("tasks.batch_size", self.batch_size, 1)
        if self.names and not self.data:
            raise errors.UserError(
                f"tasks.names={','.join(self.names)} needs tasks.data, the folder of their files."
            )
