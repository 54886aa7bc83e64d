#!/usr/bin/env bash
# Makes the project's virtual environment, or renews it if it must: .ci/venv.sh DIR [EXTRAS]
#   PYTHON   the interpreter; unset: the one the environment has, or else the newest that runs here
#   EXTRAS   setup.py's extras beside dev, as in tpu; empty: those the environment has
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 extras=${2:-} made=$1/.made

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# What was made before, unless another interpreter or other extras are asked for.
sources=$(cat setup.py .ci/venv.sh | cksum)
if [ -f "$made" ]; then
  { read -r old_sources; read -r old_python; read -r old_extras; } <"$made"
  extras=${extras:-$old_extras}
  PYTHON=${PYTHON:-$old_python}
  [ "$old_sources/$old_python/$old_extras" = "$sources/$PYTHON/$extras" ] && exit 0
fi

if [ -n "${PYTHON:-}" ]; then
  is_new_enough "$PYTHON" || { echo "error: PYTHON=$PYTHON is not Python 3.11 or newer." >&2; exit 1; }
else
  for candidate in python3.12 python3.11 python3 python3.13; do
    if is_new_enough "$candidate"; then PYTHON=$candidate; break; fi
  done
  [ -n "${PYTHON:-}" ] || {
    echo "error: no Python 3.11 or newer here: apt-get install python3 python3-venv" >&2; exit 1; }
fi

# Debian ships Python without ensurepip; its package is named after the interpreter's version.
if ! "$PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1; then
  package=python$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
  echo "installing $package"
  { as_root apt-get update -qq && as_root apt-get install -qq -y "$package"; } || {
    echo "error: $PYTHON lacks venv; install $package and try again." >&2; exit 1; }
fi

echo "setting up $venv: $("$PYTHON" --version), keel_jax[dev${extras:+,$extras}] (minutes the first time)"
# An environment of another interpreter is replaced, not mixed with.
clear=--clear
if [ "${old_python:-}" = "$PYTHON" ]; then clear=; fi
"$PYTHON" -m venv $clear "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check --upgrade pip
"$venv/bin/pip" install -q --disable-pip-version-check -e ".[dev${extras:+,$extras}]"
printf '%s\n' "$sources" "$PYTHON" "$extras" >"$made"
