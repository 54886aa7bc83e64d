"""What a JobSet's Pods leave behind: their exit codes and logs."""

import pathlib

from keel_jax.runtime import exit_codes
from launch import combined_exit_code
from launch import runner as runner_lib

# The bound on a kubectl command.
KUBECTL_SECONDS = 120
_EXIT_CODES = (
    "{range .items[*]}{.status.containerStatuses[0].state.terminated.exitCode}{'\\n'}{end}"
)


def _selector(name: str) -> str:
    return f"--selector=jobset.sigs.k8s.io/jobset-name={name}"


def failed_exit_code(runner: runner_lib.Runner, kubectl: list[str], name: str) -> int:
    """The combined exit code of a failed JobSet's Pods; ERROR if no failed Pod still exists."""
    result = runner.try_run(
        [*kubectl, "get", "pods", _selector(name), f"--output=jsonpath={_EXIT_CODES}"],
        seconds=KUBECTL_SECONDS,
    )
    codes = [int(word) for word in result.stdout.split() if word.isdigit()]
    code = combined_exit_code.combine_exit_codes(codes) if codes else exit_codes.DONE
    return exit_codes.ERROR if code == exit_codes.DONE else code


def fetch_logs(
    runner: runner_lib.Runner, kubectl: list[str], name: str, directory: pathlib.Path
) -> None:
    """The Pods' logs, each line after its Pod's name, to DIRECTORY/pods.log."""
    result = runner.try_run(
        [
            *kubectl,
            "logs",
            _selector(name),
            "--prefix",
            "--tail=-1",
            "--max-log-requests=1000",
            "--ignore-errors",
        ],
        seconds=KUBECTL_SECONDS,
    )
    if result.code != 0:
        runner.say(f"The logs could not be fetched:\n{result.output_tail}")
    elif not runner.dry_run:
        runner.write(directory / "pods.log", result.stdout)
    runner.say(f"Logs: {directory}")
