#!/usr/bin/env bash
# Everything that only a CUDA device can tell, in one call of less than ten minutes: builds with this machine's torch, runs
# the test-suite on it, compute-sanitizer on a part, streams and graph capture, and times the losses.
# Usage: benchmarks/gpu_check.sh [--dry-run] [PYTHON] [OUT]. --dry-run does what can be done without a device.
set -uo pipefail

dry=
if [ "${1:-}" = --dry-run ]; then dry=--dry-run; shift; fi
python=${1:-python3}
out=${2:-gpu_check_out}
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
mkdir -p "$out"
export PYTHONPATH="$root:$root/tests"
failed=0

# step SECONDS NAME COMMAND...: runs it, keeps what it prints, goes on where it fails.
step() {
  local seconds=$1 name=$2
  shift 2
  local start=$SECONDS
  if timeout "$seconds" "$@" > "$out/$name.txt" 2>&1; then echo "ok      $name ($((SECONDS - start)) s)"
  else echo "FAILED  $name ($((SECONDS - start)) s), see $out/$name.txt"; tail -n 5 "$out/$name.txt"; failed=1; fi
}

if [ -z "$dry" ]; then
  arch=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
  step 200 build env TORCH_CUDA_ARCH_LIST="$arch" "$python" setup.py -q build_ext --inplace
  step 20 info "$python" -m fused_ssim
  step 150 suite "$python" -m pytest -q -p no:cacheprovider -m "not slow" -k "cuda and not emulated" tests/ssim
  # Triton compiles every combination of options on the spot, seconds each: a part of the suite, on each tile.
  step 150 triton "$python" -m pytest -q -p no:cacheprovider -m "not slow" tests/ssim \
    -k "test_triton_tiles or triton and (sum_and_its and 7x10 and same or test_pyramid and student or beyond)"
  step 40 streams "$python" -m pytest -q -p no:cacheprovider tests/ssim/test_cuda_streams.py
  for tool in memcheck racecheck initcheck; do
    step 40 "$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" benchmarks/gpu_subset.py
  done
else
  export TRITON_INTERPRET=1 # so that the Triton kernel goes through as well
  step 100 info "$python" -m fused_ssim
  step 100 streams "$python" -m pytest -q -p no:cacheprovider tests/ssim/test_cuda_streams.py
  step 100 subset "$python" benchmarks/gpu_subset.py --dry-run
fi
step 260 speed "$python" -m benchmarks.gpu_speed --out "$out/speed" $dry
cat "$out/speed.txt"
exit $failed
