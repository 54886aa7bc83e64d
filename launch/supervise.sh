#!/usr/bin/env bash
# Keeps a run going on this machine: starts it again if that can help, and ends otherwise.
#
#   launch/supervise.sh python -m keel_jax.train --config=… --workdir=…
#
# The command's exit code decides (keel_jax/runtime/exit_codes.py):
#   0   done                                    ends
#   1   error, and any code not named here      ends: it would fail again
#   3   diverged                                ends: a result
#   6   corrupted: not computed reliably        ends: a person has to look at the machine
#   75  stopped on request and saved            again, at once; after a pause if it had lasted less
#                                               than QUICK_SECONDS
#   76  hung, or lost a peer                    again, after a pause
#   134 137 139 143   killed (abort; SIGKILL, out of memory; segmentation fault; SIGTERM)
#                                               again, after a pause
# The pause begins at PAUSE_SECONDS and doubles; after MAX_RETRIES pauses in a row it gives up and
# exits with the last code. A run that lasted HEALTHY_SECONDS resets pause and count. SIGTERM and
# Ctrl-C are passed on; nothing is started after them, and the command's exit code is the
# supervisor's.
#
# On several machines each has its own supervisor. One lost process ends them all (75, 76, 134), all
# supervisors pause equally long, and the new processes wait for one another
# (--initialization_timeout_seconds).
#
# EXIT_CODE_FILE, if set, gets the exit code at the end.
set -u
MAX_RETRIES=${MAX_RETRIES:-5}
PAUSE_SECONDS=${PAUSE_SECONDS:-5}
QUICK_SECONDS=${QUICK_SECONDS:-60}
HEALTHY_SECONDS=${HEALTHY_SECONDS:-600}

if [ $# -eq 0 ] || [ "$1" = --help ]; then
  sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//'
  [ $# -gt 0 ]; exit
fi
if [ -n "${EXIT_CODE_FILE:-}" ]; then
  # shellcheck disable=SC2154  # $code is assigned when the trap runs
  trap 'code=$?; echo "$code" >"$EXIT_CODE_FILE"' EXIT
fi

say() { printf 'supervise: %s\n' "$*" >&2; }

child='' stop_requested=''
pass_on() { stop_requested=$1; [ -n "$child" ] && kill -s "$1" "$child" 2>/dev/null; }
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

retries=0 pause=$PAUSE_SECONDS
while true; do
  begin=$SECONDS
  # In the background, so that a signal reaches the trap at once. A background command ignores the
  # terminal's Ctrl-C, so that it is passed on too.
  "$@" <&0 &
  child=$!
  # A trapped signal interrupts `wait`, which then returns the signal's number, although the command
  # may still be saving. A `wait` after the command's end returns its exit code.
  while kill -0 "$child" 2>/dev/null; do wait "$child"; done
  wait "$child"; code=$?
  child='' lasted=$((SECONDS - begin))

  if [ -n "$stop_requested" ]; then say "asked to stop; the command ended with $code"; exit "$code"; fi
  if [ "$lasted" -ge "$HEALTHY_SECONDS" ]; then retries=0 pause=$PAUSE_SECONDS; fi
  case $code in
    0) say "done"; exit 0 ;;
    3) say "diverged: a result, not a fault; see status.json"; exit 3 ;;
    6) say "not computed reliably: look at the machine; see status.json"; exit 6 ;;
    75)
      if [ "$lasted" -ge "$QUICK_SECONDS" ]; then say "stopped and saved; starting it again"; continue; fi
      event="stopped and saved (75) after only $lasted s" ;;
    76) event="hung, or lost a peer (76)" ;;
    134 | 137 | 139 | 143) event="killed ($code)" ;;
    *) say "error $code: it would fail again"; exit "$code" ;;
  esac
  retries=$((retries + 1))
  if [ "$retries" -gt "$MAX_RETRIES" ]; then
    say "$event, after $MAX_RETRIES retries in a row: giving up"; exit "$code"
  fi
  say "$event; retry $retries of at most $MAX_RETRIES in a row, in $pause s"
  # In the background too, so that a signal ends the pause at once.
  sleep "$pause" & child=$!; wait "$child"; child=''
  if [ -n "$stop_requested" ]; then say "asked to stop"; exit "$code"; fi
  pause=$((pause * 2))
done
