#!/usr/bin/env bash
# What the launchers run on a machine, in the directory of this file, which also holds source.tar.gz
# (the pinned source), constraints.txt and supervise.sh.
#
#   worker.sh install EXTRAS PYTHON   unpacks source.tar.gz into source/, installs it into venv/:
#                                     EXTRAS as in tpu,gcs; PYTHON, as in 3.12, is the version that
#                                     constraints.txt was written for
#   worker.sh run ARGS…               venv/bin/python ARGS under supervise.sh, in source/
#   worker.sh start LOGS ARGS…        the same, detached, output to train.log; if LOGS is a gs://
#                                     directory, not -, it gets a copy every few minutes
#   worker.sh status                  prints a line: keel-worker HOST absent, running or exited CODE
#   worker.sh stop SECONDS            asks the run to save and end, and kills it after SECONDS
#   worker.sh log                     prints train.log, each line after the host's name
#   worker.sh ship DIRECTORY          copies train.log to DIRECTORY/HOST.log, a gs:// directory
#
# Environment: SHIP_SECONDS between two copies of the log, and what supervise.sh reads.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
host=$(hostname)
cd "$here"
say() { printf 'keel-worker %s %s\n' "$host" "$*"; }

install_() {
  local extras=$1 python=$2 wanted
  wanted="$extras $python $(cat source.tar.gz constraints.txt | cksum)"
  if [ -f installed ] && [ "$(cat installed)" = "$wanted" ]; then say installed; return; fi
  rm -rf source venv && mkdir source && tar -xzf source.tar.gz -C source
  if "python$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "python$python" -m venv venv
  else
    # Images of TPU VMs have an older Python; uv brings the one that the constraints are for.
    python3 -m pip install -q --user uv && python3 -m uv venv -q --seed --python "$python" venv
  fi
  venv/bin/pip install -q --disable-pip-version-check -c constraints.txt "./source[$extras]"
  venv/bin/pip freeze >installed.txt
  echo "$wanted" >installed
  say installed
}

run() { cd source && exec bash ../supervise.sh ../venv/bin/python -u "$@"; }

is_running() { [ -f pid ] && kill -0 "$(cat pid)" 2>/dev/null; }

ship() { gcloud storage cp --quiet train.log "$1/$host.log"; }

start() {
  local logs=$1; shift
  if is_running; then say running; return; fi
  rm -f exit_code
  EXIT_CODE_FILE=$here/exit_code setsid nohup bash worker.sh run "$@" >>train.log 2>&1 </dev/null &
  echo $! >pid
  if [ "$logs" != - ]; then
    # shellcheck disable=SC2016  # expanded by the inner shell
    setsid nohup bash -c 'while kill -0 "$1"; do sleep "$2"; bash worker.sh ship "$3"; done' \
      ship "$(cat pid)" "${SHIP_SECONDS:-300}" "$logs" >/dev/null 2>&1 </dev/null &
  fi
  say running
}

status() {
  if [ ! -f pid ]; then say absent
  elif is_running; then say running
  # If there is no code, the supervisor itself was killed.
  else say exited "$(cat exit_code 2>/dev/null || echo 137)"; fi
}

stop() {
  local seconds=$1
  if is_running; then
    kill -TERM "$(cat pid)" || true
    while is_running && [ "$seconds" -gt 0 ]; do sleep 1; seconds=$((seconds - 1)); done
    # setsid made the process the leader of its group.
    if is_running; then kill -KILL -- "-$(cat pid)" || true; sleep 1; fi
  fi
  status
}

case ${1:-} in
  install) install_ "$2" "$3" ;;
  run) shift; run "$@" ;;
  start) shift; start "$@" ;;
  status) status ;;
  stop) stop "$2" ;;
  log) sed "s/^/$host: /" train.log ;;
  ship) ship "$2" ;;
  *) sed -n '2,/^set /p' worker.sh | sed '$d; s/^# \{0,1\}//'; [ "${1:-}" = --help ] ;;
esac
