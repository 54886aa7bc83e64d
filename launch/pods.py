"""What is left of a JobSet's Pods: their exit codes and logs."""

import pathlib

from launch import runner as runner_lib
from launch import verdict

KUBECTL_SECONDS = 120
_EXIT_CODES = (
    "{range .items[*]}{.status.containerStatuses[0].state.terminated.exitCode}{'\\n'}{end}"
)


def _selector(name: str) -> str:
    return f"--selector=jobset.sigs.k8s.io/jobset-name={name}"


def failure(runner: runner_lib.Runner, kubectl: list[str], name: str) -> int:
    """The verdict on a failed JobSet's Pods; 1 if none that failed is still there."""
    result = runner.ask(
        [*kubectl, "get", "pods", _selector(name), f"--output=jsonpath={_EXIT_CODES}"],
        seconds=KUBECTL_SECONDS,
    )
    codes = [int(word) for word in result.stdout.split() if word.isdigit()]
    return (verdict.combine_exit_codes(codes) if codes else 0) or 1


def fetch_logs(runner: runner_lib.Runner, kubectl: list[str], name: str, directory: pathlib.Path):
    """The Pods' logs, each line after its Pod's name, to DIRECTORY/pods.log."""
    result = runner.ask(
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
        runner.say(f"The logs did not come:\n{result.last_words}")
    elif not runner.dry_run:
        runner.write(directory / "pods.log", result.stdout)
    runner.say(f"Logs: {directory}")
