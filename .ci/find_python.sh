#!/usr/bin/env bash
# Prints the interpreter of one version of Python, on the PATH or under pyenv; fails if there is none:
#   .ci/find_python.sh 3.12
set -euo pipefail
version=$1
runs() { "$1" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" >/dev/null 2>&1; }

for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
  if runs "$candidate"; then
    command -v "$candidate"
    exit 0
  fi
done
exit 1
