#!/usr/bin/env bash
# Installs PyTorch and transformers for the slow tests, unless they are there: .ci/torch.sh DIR
#   TORCH   what pip is told for PyTorch; empty: a build for CPUs alone (200 MB), where the package
#           index has one, and otherwise the newest (with CUDA some GB)
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 cpu_build=torch==2.13.0+cpu

"$venv/bin/python" -c 'import torch, transformers' >/dev/null 2>&1 && exit 0
install() { "$venv/bin/pip" install -q --disable-pip-version-check "$@"; }
echo "installing PyTorch and transformers into $venv (minutes)"
if [ -n "${TORCH:-}" ]; then
  # Several words: a requirement and pip's options.
  # shellcheck disable=SC2086
  install $TORCH
else
  install "$cpu_build" 2>/dev/null || install torch
fi
install -e ".[torch]"
