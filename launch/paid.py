"""What costs money while it is there: held by a `with`, deleted at its end whatever happened."""

import collections.abc
import contextlib
import shlex

from keel_jax import errors
from launch import launcher
from launch import runner as runner_lib

_MAX_PAUSE_FACTOR = 8


class NotOurs(errors.UserError):
    """Something of this name was there already: it is not ours to delete."""


@contextlib.contextmanager
def held(
    runner: runner_lib.Runner,
    what: str,
    *,
    delete_once: collections.abc.Callable[[], bool],
    commands: collections.abc.Sequence[list[str]],
    tries: int,
    pause_seconds: float,
    keep: bool,
) -> collections.abc.Iterator[collections.abc.Callable[[], None]]:
    """A scope in which `what` may be there; yields a function to say that the run succeeded.

    Args:
      runner: says what happens.
      what: its kind and name.
      delete_once: asks for its deletion, and returns whether it is finish_despite_interrupts gone.
      commands: what the user types to delete it and to look, if all tries fail.
      tries: of deleting; the pauses between them double.
      pause_seconds: the first pause.
      keep: whether it is kept after a success.

    Raises:
      command.LeftRunning: it could not be deleted.
    """
    succeeded = []

    def delete():
        with launcher.ignore_interrupts(lambda: runner.say(f"Still deleting {what}: please wait.")):
            for attempt in range(tries):
                if attempt:
                    # What is being created or deleted refuses for a while.
                    pause = pause_seconds * min(2 ** (attempt - 1), _MAX_PAUSE_FACTOR)
                    runner.say(f"{what} is not deleted yet; again in {pause:g} s.")
                    runner.sleep(pause)
                if delete_once():
                    return
        lines = "\n".join(f"  {shlex.join(words)}" for words in commands)
        raise launcher.LeftRunning(
            f"{what} COULD NOT BE DELETED AND MAY COST MONEY. Delete it yourself, and look that it "
            f"is gone:\n{lines}"
        )

    try:
        yield lambda: succeeded.append(True)
    except NotOurs:
        raise
    except BaseException:
        launcher.finish_despite_interrupts(delete)
        raise
    if succeeded and keep:
        runner.say(f"{what} is kept, and may cost money, until:\n  {shlex.join(commands[0])}")
    else:
        launcher.finish_despite_interrupts(delete)


def add_options(made, what: str):
    """How it ends; `what` is the kind of thing that is paid for."""
    group = made.add_argument_group("the end")
    group.add_argument("--keep", action="store_true", help=f"keep the {what} if the run ends well")
    group.add_argument(
        "--delete_tries",
        type=launcher.positive,
        default=8,
        help="before you are asked to delete it yourself (default: 8)",
    )
