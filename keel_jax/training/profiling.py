"""The device trace of a range of steps, for TensorBoard's profiler."""

import contextlib

import jax

from keel_jax.runtime import best_effort


class StepTrace:
    """The trace of `train.profile_steps`; as a context manager it is always closed."""

    def __init__(self, steps: tuple[int, int] | None, directory: str):
        """`steps` are the first and the last one, counted from 1; None: nothing is traced."""
        self._first, self._last = steps or (0, -1)
        self._directory = directory
        self._is_on = False

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *_):
        self.stop()

    def begins_before(self, step: int) -> bool:
        """Whether the trace starts before `step`, also in a run that resumes within the range."""
        return not self._is_on and self._first <= step <= self._last

    def ends_after(self, step: int) -> bool:
        """Whether `step` is the last traced one."""
        return self._is_on and step == self._last

    def start(self) -> None:
        """Starts recording; earlier steps must have finished on the device."""
        jax.profiler.start_trace(self._directory)
        self._is_on = True

    def stop(self) -> None:
        """Writes the trace; the last step must have finished on the device.

        It is only a log: if it cannot be written, a warning says so, and the run goes on.
        """
        if not self._is_on:
            return
        self._is_on = False
        with best_effort.writing(f"The trace in {self._directory}"), _as_os_error():
            jax.profiler.stop_trace()


@contextlib.contextmanager
def _as_os_error():
    """The profiler has its own error for a file that it cannot write."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise OSError(str(error)) from error
