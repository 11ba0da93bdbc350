#!/usr/bin/env bash
# Builds a copy of the extension with AddressSanitizer and UndefinedBehaviorSanitizer and runs the tests that exercise its
# memory accesses under it. Usage: tests/ssim/sanitize.sh PYTHON
# Needs what the build needs; a compiler without the sanitizers' libraries (clang keeps its own elsewhere) is no failure.
set -euo pipefail

python=$(realpath -s "${1:?usage: sanitize.sh PYTHON}")
root=$(cd "$(dirname "$0")/../.." && pwd)
compiler=${CXX:-c++}  # what setup.py takes
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

# Python itself is not instrumented, so the runtimes must come first. The compiler says where it keeps them.
runtimes=()
for name in libasan libubsan libstdc++; do
  runtimes+=("$($compiler -print-file-name=$name.so || true)")
done
if ! { echo 'int main() {}' | $compiler -fsanitize=address,undefined -x c++ - -o "$copy/probe" && "$copy/probe"; } ||
  ! ls "${runtimes[@]}" >/dev/null; then
  echo "sanitize: SKIPPED, nothing was checked: $compiler has no libasan.so and libubsan.so (above: what it said)"
  exit 0
fi

cp -r "$root/csrc" "$root/fused_ssim" "$root/setup.py" "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$copy"
mkdir "$copy/tests"
cp -r "$root"/tests/*.py "$root/tests/cuda_emulator" "$root/tests/ssim" "$copy/tests"
rm -f "$copy"/fused_ssim/*.so
cd "$copy"

# The kernels inline thousands of vector operations; -O1 keeps the instrumented build to minutes.
FUSED_SSIM_CUDA=0 \
FUSED_SSIM_CXXFLAGS="-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer" \
FUSED_SSIM_LDFLAGS="-fsanitize=address,undefined" \
  "$python" setup.py -q build_ext --inplace

export LD_PRELOAD="${runtimes[*]}"
# Leaks are the interpreter's; torch is not checked.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:detect_odr_violation=0
export UBSAN_OPTIONS=print_stacktrace=1
"$python" -m pytest -q -p no:cacheprovider -k "not reference and not emulated and not triton-compiled and not beyond_32_bits" \
  tests/ssim/test_values.py tests/ssim/test_layouts.py tests/ssim/test_half.py tests/ssim/test_reductions.py \
  tests/ssim/test_pyramid.py tests/ssim/test_l1.py tests/ssim/test_robustness.py
