#!/usr/bin/env bash
# Keeps a run going on this machine: starts it again where that can help, and stops where it cannot.
#
#   launch/supervise.sh python -m keel_jax.train --config=… --workdir=…
#
# The command's exit code decides (keel_jax/runtime/exit_codes.py):
#   0   done                                    the end
#   1   error, and any code not named here      the end: it would fail again
#   3   diverged                                the end: a result
#   75  stopped on request and saved            again, at once
#   134 137 139   killed (abort, SIGKILL, out of memory, segmentation fault)
#                 again, after a pause that doubles; at most MAX_CRASHES in a row
# A run that lasted HEALTHY_SECONDS before it was killed starts the count anew. SIGTERM and Ctrl-C
# are passed on, and what the command then answers is the answer: nothing is started again.
set -u
MAX_CRASHES=${MAX_CRASHES:-5}
PAUSE_SECONDS=${PAUSE_SECONDS:-5}
HEALTHY_SECONDS=${HEALTHY_SECONDS:-600}

if [ $# -eq 0 ] || [ "$1" = --help ]; then
  sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//'
  [ $# -gt 0 ]; exit
fi

say() { printf 'supervise: %s\n' "$*" >&2; }

child= asked=
pass_on() { asked=$1; [ -n "$child" ] && kill -s "$1" "$child" 2>/dev/null; }
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

crashes=0 pause=$PAUSE_SECONDS
while true; do
  begin=$SECONDS
  # In the background, so that a signal reaches the trap at once; Ctrl-C is ignored there, and passed on.
  "$@" <&0 &
  child=$!
  while true; do
    wait "$child"; code=$?
    # A trapped signal interrupts the wait; the command itself may still be saving.
    kill -0 "$child" 2>/dev/null || break
  done
  child=

  if [ -n "$asked" ]; then say "asked to stop; the command ended with $code"; exit "$code"; fi
  case $code in
    0) say "done"; exit 0 ;;
    3) say "diverged: a result, not a fault; see status.json"; exit 3 ;;
    75) say "stopped and saved; starting it again"; continue ;;
    134 | 137 | 139) ;;
    *) say "error $code: it would fail again"; exit "$code" ;;
  esac
  if [ $((SECONDS - begin)) -ge "$HEALTHY_SECONDS" ]; then crashes=0 pause=$PAUSE_SECONDS; fi
  crashes=$((crashes + 1))
  if [ "$crashes" -gt "$MAX_CRASHES" ]; then
    say "killed ($code) $crashes times in a row: giving up"; exit "$code"
  fi
  say "killed ($code), $crashes of at most $MAX_CRASHES times in a row; again in $pause s"
  # In the background too, for the same reason.
  sleep "$pause" & child=$!; wait "$child"; child=
  [ -n "$asked" ] && exit "$code"
  pause=$((pause * 2))
done
