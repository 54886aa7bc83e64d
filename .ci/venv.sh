#!/usr/bin/env bash
# Makes (or renews) the project's virtual environment: .ci/venv.sh DIR EXTRAS
# The interpreter is $PYTHON, or else the newest Python from 3.11 on that runs here.
set -euo pipefail
venv=$1 extras=$2
cd "$(dirname "$0")/.."

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
  is_new_enough "$PYTHON" || { echo "error: PYTHON=$PYTHON is not Python 3.11 or newer." >&2; exit 1; }
  python=$PYTHON
else
  python=
  for candidate in python3.12 python3.11 python3 python3.13; do
    if is_new_enough "$candidate"; then python=$candidate; break; fi
  done
  [ -n "$python" ] || { echo "error: no Python 3.11 or newer here: apt-get install python3 python3-venv" >&2; exit 1; }
fi

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# Debian ships Python without ensurepip; its package is named after the interpreter's version.
if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
  package=python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
  echo "installing $package"
  as_root apt-get update -qq && as_root apt-get install -qq -y "$package" || {
    echo "error: $python lacks venv; install $package and try again." >&2; exit 1; }
fi

echo "setting up $venv with $("$python" --version) and keel_jax[$extras] (a few minutes the first time)"
# An environment of another interpreter is replaced, not mixed with.
"$python" -m venv --clear "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check --upgrade pip
"$venv/bin/pip" install -q --disable-pip-version-check -e ".[$extras]"
