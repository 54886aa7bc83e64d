"""Exit codes of the driver and of the launchers, which say whether starting a run again can help.

After death by a signal (134, 137, 139) the supervisor starts it again a bounded number of times.
"""

DONE = 0
# A mistake in the input or in the program: starting again would fail again.
ERROR = 1
# The loss became non-finite: a result, not an error.
DIVERGED = 3
# The plan does not fit the chip's memory: a result, not an error.
DOES_NOT_FIT = 4
# From a launcher: a paid machine could not be deleted and may still be running.
LEFT_RUNNING = 5
# A check found that something was not computed reliably: a person has to look at the machine.
CORRUPTED = 6
# Stopped on request and saved; can be resumed (EX_TEMPFAIL).
PREEMPTED = 75
# It hung, or a process that it needs died, hung or never joined: starting all again can help.
HUNG = 76
# From a launcher: ended by Ctrl-C or by a signal that is handled in the same way (128 + SIGINT).
INTERRUPTED = 130

# The states in `status.json` for the driver's exit codes.
STATES = {
    DONE: "done",
    ERROR: "failed",
    DIVERGED: "diverged",
    CORRUPTED: "corrupted",
    PREEMPTED: "preempted",
    HUNG: "failed",
}
