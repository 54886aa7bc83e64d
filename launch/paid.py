"""What costs money while it exists: a `with` block deletes it at its end, whatever happened."""

import argparse
import collections.abc
import contextlib
import shlex

from keel_jax import errors
from launch import launcher, options
from launch import runner as runner_lib

# In its `with` block a resource may exist; the value is called to mark the run a success.
Scope = contextlib.AbstractContextManager[collections.abc.Callable[[], None]]

_MAX_PAUSE_FACTOR = 8


class NotOurs(errors.UserError):
    """Something of this name existed already, so it is not ours to delete."""


@contextlib.contextmanager
def resource(
    runner: runner_lib.Runner,
    description: str,
    *,
    delete_once: collections.abc.Callable[[], bool],
    delete_command: list[str],
    inspect_command: list[str],
    args: argparse.Namespace,
) -> collections.abc.Iterator[collections.abc.Callable[[], None]]:
    """A scope in which a resource may exist; yields a function that marks the run a success.

    Args:
      runner: tells the user what happens.
      description: the resource's kind and name.
      delete_once: asks for its deletion, and returns whether it is certain that it is gone.
      delete_command: what the user is told to type to delete it, if all tries fail.
      inspect_command: likewise, to see whether it is gone.
      args: --delete_tries of deleting, with pauses of --poll_seconds, doubling, between them;
        --keep spares the resource after a success.

    Raises:
      launcher.LeftRunning: it could not be deleted.
    """
    is_success = False

    def mark_success() -> None:
        nonlocal is_success
        is_success = True

    def delete() -> None:
        with launcher.ignore_interrupts(
            lambda: runner.say(f"Still deleting {description}: please wait.")
        ):
            for attempt in range(args.delete_tries):
                if attempt:
                    # A resource that is being created or deleted refuses a deletion for a while.
                    pause = args.poll_seconds * min(2 ** (attempt - 1), _MAX_PAUSE_FACTOR)
                    runner.say(f"{description} is not deleted yet; trying again in {pause:g} s.")
                    runner.sleep(pause)
                if delete_once():
                    return
        raise launcher.LeftRunning(
            f"{description} COULD NOT BE DELETED AND MAY COST MONEY. Delete it yourself, and check "
            f"that it is gone:\n  {shlex.join(delete_command)}\n  {shlex.join(inspect_command)}"
        )

    try:
        yield mark_success
    except NotOurs:
        raise
    except BaseException:
        launcher.finish_despite_interrupts(delete)
        raise
    if is_success and args.keep:
        runner.say(
            f"{description} is kept, and may cost money, until:\n  {shlex.join(delete_command)}"
        )
    else:
        launcher.finish_despite_interrupts(delete)


def add_options(parser: options.Parser, kind: str) -> None:
    """Options of how the resource ends; `kind` is its noun."""
    group = parser.add_argument_group("the end")
    group.add_argument("--keep", action="store_true", help=f"keep the {kind} if the run ends well")
    group.add_argument(
        "--delete_tries",
        type=options.positive_int,
        default=8,
        help="before you are asked to delete it yourself (default: 8)",
    )
