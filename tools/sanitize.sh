#!/usr/bin/env bash
# The op tests on a build of the C++ core with the address and undefined-behaviour sanitizers.
# Needs the environment of the tests: pip install -e ".[train,test]"
set -euo pipefail
cd "$(dirname "$0")/.."

build=build/sanitize
cmake -S . -B $build -G Ninja -DCMAKE_BUILD_TYPE=Debug -DWILSON_SANITIZE=ON -DWILSON_CUDA=OFF -DWILSON_PYTHON_MODULE=OFF -DPython_EXECUTABLE="$(command -v python)"
cmake --build $build

# The package as it stands here, with the instrumented library in the place of the installed one.
rm -rf $build/site && mkdir -p $build/site/wilson
for entry in wilson/*; do
  case "$entry" in *.so) ;; *) ln -s "$PWD/$entry" $build/site/wilson/ ;; esac
done
ln -s "$PWD/kernels" $build/site/wilson/kernels
cp $build/_C*.so $build/site/wilson/

# Python itself is not instrumented: the runtime comes first, and leaks of the interpreter do not count.
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
cd $build/site # where `wilson` is the one linked above
export PYTHONPATH=$PWD
python - <<'PYTHON'
from wilson.ops import _library

assert "sanitize" in str(_library.CPU_LIBRARY) and _library.build_info(), _library.CPU_LIBRARY
PYTHON
ln -s "$OLDPWD/tests" tests # beside it, so that no test finds the other `wilson`
pytest tests/ops/test_ops.py tests/ops/test_random.py tests/ops/test_golden.py -m "not slow" -k "not compile" \
  -p no:cacheprovider "$@"
