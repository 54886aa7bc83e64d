"""Exit codes of the driver and of the launchers: whether starting a run again can help.

Death by a signal (134, 137, 139) is for the supervisor to judge: again, a bounded number of times.
"""

DONE = 0
# A mistake in the input or in the program: starting again would fail again.
ERROR = 1
# The loss became non-finite: a data point, not a fault.
DIVERGED = 3
# The plan does not fit the chip's memory: an answer, not a fault.
DOES_NOT_FIT = 4
# Of a launcher: a paid machine could not be deleted, and may have been left running.
LEFT_RUNNING = 5
# Asked to stop, saved, can go on (EX_TEMPFAIL).
PREEMPTED = 75
# It hung, or a process that it needs died, hung or never came: starting all of them again can help.
HUNG = 76
# Of a launcher: ended by Ctrl-C, or by a signal that it handles alike (128 + SIGINT).
INTERRUPTED = 130

# What `status.json` calls each of the driver's.
STATES = {
    DONE: "done",
    ERROR: "failed",
    DIVERGED: "diverged",
    PREEMPTED: "preempted",
    HUNG: "failed",
}
