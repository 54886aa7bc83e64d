"""The pinned source: an archive of one commit, its packages' versions, the workers' scripts."""

import argparse
import pathlib
import sys

from keel_jax import errors
from launch import runner as runner_lib

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = ("worker.sh", "supervise.sh")
FILES = ("source.tar.gz", "constraints.txt", *SCRIPTS)
# Local commands: git, cp, tar.
_SECONDS = 120


def python_version() -> str:
    """Of this interpreter, as in 3.12: the constraints are for this one."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def bundle(runner: runner_lib.Runner, args: argparse.Namespace) -> pathlib.Path:
    """Makes `RUN_DIR/bundle` with `FILES`, and returns it.

    Raises:
      UserError: the tree has changes that are not committed, or the commit lacks the config.
    """
    git = ["git", "-C", str(ROOT)]

    def answer(*command: str, dry_run: str = "") -> str:
        result = runner.ask([*git, *command], seconds=_SECONDS, dry_run_answer=dry_run)
        if result.code != 0:
            raise runner_lib.CommandFailed(result)
        return result.stdout.strip()

    changed = answer("status", "--porcelain")
    if changed and not args.allow_dirty:
        raise errors.UserError(
            f"The tree has changes that no commit holds, so nobody could say what ran:\n{changed}\n"
            "Commit them, or take those of tracked files along with --allow_dirty."
        )
    commit = answer("rev-parse", "HEAD", dry_run="HEAD")
    if args.allow_dirty:
        # A commit of the tracked files as they are, on no branch; nothing if there are no changes.
        commit = answer("stash", "create") or commit
    if runner.ask([*git, "cat-file", "-e", f"{commit}:{args.config}"], seconds=_SECONDS).code != 0:
        raise errors.UserError(
            f"Commit {commit[:12]} has no file {args.config}: give --config from the project's "
            "root, and commit the file."
        )

    directory = args.run_dir / "bundle"
    archive = directory / "source.tar.gz"
    constraints = directory / "constraints.txt"
    runner.run(["mkdir", "-p", str(directory)], seconds=_SECONDS)
    runner.run(
        [*git, "archive", "--format=tar.gz", f"--output={archive.absolute()}", commit],
        seconds=_SECONDS,
    )
    if args.constraints:
        runner.run(["cp", str(args.constraints), str(constraints)], seconds=_SECONDS)
    else:
        runner.run([sys.executable, "-m", "launch.constraints", str(constraints)], seconds=_SECONDS)
    scripts = [str(ROOT / "launch" / name) for name in SCRIPTS]
    runner.run(["cp", *scripts, str(directory)], seconds=_SECONDS)
    return directory


def packed(runner: runner_lib.Runner, directory: pathlib.Path) -> pathlib.Path:
    """The bundle as one file: what is copied by scp is whole, or it is not there."""
    path = directory.with_name("bundle.tar.gz")
    runner.run(["tar", "-czf", str(path), "-C", str(directory), *FILES], seconds=_SECONDS)
    return path
