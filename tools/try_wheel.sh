#!/usr/bin/env bash
# Installs a wheel into a bare environment, with torch and numpy alone, and runs every op, forward and backward, against
# the reference: tools/try_wheel.sh WHEEL [TORCH]   (TORCH: a version, such as 2.10.0; by default the newest)
set -euo pipefail
wheel=$(realpath "$1")
tests=$(realpath "$(dirname "$0")/../tests")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet "torch${2:+==$2}" numpy "$wheel"
ln -s "$tests" "$scratch/tests" # beside the environment, so that no other wilson is found
cd "$scratch"
"$scratch/venv/bin/python" -m tests.support.every_op
