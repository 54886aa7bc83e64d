"""Runs a stand-in: it answers like the real program, or with the fault that a test configured.

Each knows the real one's flags, output and exit codes, keeps what it created in `resources.json` of
the directory STANDIN, and appends every call to `calls.jsonl`. `faults.json` lists what goes wrong:

    {"match": regex on the command line, "times": N, "after": matching calls that succeed first,
     "code": exit code, "stderr": …, "stdout": …, "effect": whether it does its work all the same,
     "preempt": true to take all machines away first, "sleep": seconds}

The stand-ins start about a thousand times in a test run: they do without site-packages, and import
only what the program needs.
"""

import importlib
import json
import sys
import time

from standins import state

_MODULES = {
    "gcloud": "gcloud",
    "kubectl": "kubectl",
    "xpk": "xpk",
    "sbatch": "slurm",
    "sacct": "slurm",
    "squeue": "slurm",
    "scancel": "slurm",
    "scontrol": "slurm",
    "srun": "slurm",
}


def main(program: str) -> int:
    """Runs this program with the arguments in sys.argv; returns its exit code."""
    argv = sys.argv[1:]
    with open(state.path("calls.jsonl"), "a") as calls:
        calls.write(json.dumps([program, *argv]) + "\n")
    fault = state.next_fault(" ".join([program, *argv]))
    try:
        if fault.get("sleep"):
            time.sleep(fault["sleep"])
        if fault.get("preempt"):
            importlib.import_module("standins.gcloud").preempt_all()
        if not fault or fault.get("effect"):
            module = importlib.import_module(f"standins.{_MODULES[program]}")
            getattr(module, program)(argv)
    except state.Refused as error:
        print(error.stderr, file=sys.stderr)
        return error.code
    print(fault.get("stdout", ""), end="")
    if fault.get("stderr"):
        print(fault["stderr"], file=sys.stderr)
    return fault.get("code", 0)
