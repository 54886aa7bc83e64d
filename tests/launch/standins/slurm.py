"""Slurm: a function a program."""

import os
import re
import signal

from standins import state


def sbatch(argv: list[str]) -> None:
    words, _ = state.parse_flags(argv, set(), {"--parsable"})
    name = re.search(r"^#SBATCH --job-name=(.+)$", state.read_text(words[0]), re.MULTILINE)[1]
    with state.JsonFile("resources", {}) as resources:
        resources[f"job/{name}"] = {}
    print("77;cluster")


def sacct(argv: list[str]) -> None:
    """Answers the states of `sacct.json` in turn; the job is gone before the first that ends it."""
    state.parse_flags(argv, {"--jobs", "--format"}, {"--allocations", "--noheader", "--parsable2"})
    with state.JsonFile("sacct", ["COMPLETED|0:0"]) as states:
        print(states[0])
        if len(states) > 1:
            states.pop(0)
    if "PENDING" not in states[0] and "RUNNING" not in states[0]:
        with state.JsonFile("resources", {}) as resources:
            resources.clear()


def squeue(argv: list[str]) -> None:
    _, flags = state.parse_flags(argv, {"--name", "--format"}, {"--me", "--noheader"})
    with state.JsonFile("resources", {}) as resources:
        if f"job/{flags['--name']}" in resources:
            print("RUNNING")


def scancel(argv: list[str]) -> None:
    """Deletes a job; or signals all processes of a step, as the real one does."""
    words, flags = state.parse_flags(argv, {"--name", "--signal"}, {"--me"})
    if "--signal" in flags:
        assert words == [f"{os.environ['SLURM_JOB_ID']}.0"], words
        with state.JsonFile("step", []) as groups:
            for group in groups:
                os.killpg(group, getattr(signal, f"SIG{flags['--signal']}"))
        return
    with state.JsonFile("resources", {}) as resources:
        resources.pop(f"job/{flags['--name']}", None)


def scontrol(argv: list[str]) -> None:
    assert argv[0] == "requeue", argv


def srun(argv: list[str]) -> None:
    """Runs the tasks; the highest exit code. On SIGTERM it kills them ("forcing termination")."""
    while argv[0].startswith("--"):
        state.parse_flags(
            [argv.pop(0)], {"--kill-on-bad-exit", "--wait", "--output", "--open-mode"}
        )
    tasks = []
    for task in range(state.NUM_WORKERS):
        tasks.append(os.fork())
        if tasks[-1] == 0:
            os.setpgid(0, 0)
            os.environ["SLURM_PROCID"] = str(task)
            os.execvp(argv[0], argv)
    with state.JsonFile("step", []) as groups:
        groups[:] = tasks
    signal.signal(signal.SIGTERM, lambda *_: [os.killpg(task, signal.SIGKILL) for task in tasks])
    code = max(os.waitstatus_to_exitcode(os.waitpid(task, 0)[1]) for task in tasks)
    if code:
        raise state.Refused(code, f"srun: error: task exited with exit code {code}")
