"""The pinned source: an archive of one commit, its packages' versions, the workers' scripts."""

import argparse
import pathlib
import sys

from keel_jax import errors
from launch import runner as runner_lib

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = ("worker.sh", "supervise.sh")
FILES = ("source.tar.gz", "constraints.txt", *SCRIPTS)
# Of each local command: git, cp, tar.
_SECONDS = 120
_GIT = ("git", "-C", str(ROOT))


def python_version() -> str:
    """This interpreter's, as in 3.12: the constraints are for this one."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def make_bundle(runner: runner_lib.Runner, args: argparse.Namespace) -> pathlib.Path:
    """Makes the directory `RUN_DIR/bundle` with `FILES`, and returns it.

    Raises:
      UserError: the tree has uncommitted changes, or the commit lacks the config.
    """
    commit = _commit(runner, args)
    directory = args.run_dir / "bundle"
    archive = directory / "source.tar.gz"
    constraints = directory / "constraints.txt"
    runner.run(["mkdir", "-p", str(directory)], seconds=_SECONDS)
    runner.run(
        [*_GIT, "archive", "--format=tar.gz", f"--output={archive.absolute()}", commit],
        seconds=_SECONDS,
    )
    if args.constraints:
        runner.run(["cp", str(args.constraints), str(constraints)], seconds=_SECONDS)
    else:
        runner.run([sys.executable, "-m", "launch.constraints", str(constraints)], seconds=_SECONDS)
    scripts = [str(ROOT / "launch" / name) for name in SCRIPTS]
    runner.run(["cp", *scripts, str(directory)], seconds=_SECONDS)
    return directory


def _commit(runner: runner_lib.Runner, args: argparse.Namespace) -> str:
    """The commit that workers get; with --allow_dirty one of the tracked files as they are."""
    changes = _git_output(runner, "status", "--porcelain")
    if changes and not args.allow_dirty:
        raise errors.UserError(
            "The tree has uncommitted changes, so that nobody could tell later what ran:\n"
            f"{changes}\nCommit them, or include those of tracked files with --allow_dirty."
        )
    commit = _git_output(runner, "rev-parse", "HEAD", dry_run_stdout="HEAD")
    if args.allow_dirty:
        # A commit of the tracked files as they are, on no branch; nothing if there are no changes.
        commit = _git_output(runner, "stash", "create") or commit
    look_up = [*_GIT, "cat-file", "-e", f"{commit}:{args.config}"]
    if runner.try_run(look_up, seconds=_SECONDS).code != 0:
        raise errors.UserError(
            f"Commit {commit[:12]} has no file {args.config}: give --config from the project's "
            "root, and commit the file."
        )
    return commit


def _git_output(runner: runner_lib.Runner, *command: str, dry_run_stdout: str = "") -> str:
    result = runner.try_run([*_GIT, *command], seconds=_SECONDS, dry_run_stdout=dry_run_stdout)
    if result.code != 0:
        raise runner_lib.CommandFailed(result)
    return result.stdout.strip()


def pack_bundle(runner: runner_lib.Runner, directory: pathlib.Path) -> pathlib.Path:
    """The bundle as one file, so that a copy by scp is either complete or absent."""
    path = directory.with_name("bundle.tar.gz")
    runner.run(["tar", "-czf", str(path), "-C", str(directory), *FILES], seconds=_SECONDS)
    return path
