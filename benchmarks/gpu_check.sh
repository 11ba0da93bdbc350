#!/usr/bin/env bash
# Everything that only a CUDA device can tell, in one call: builds with this machine's torch, runs the test-suite on the
# device, streams and graph capture, times the losses, and compute-sanitizer on a part.
# Usage: benchmarks/gpu_check.sh [--dry-run] [--deadline SECONDS] [--peers DIR] [PYTHON] [OUT]
# --dry-run does what can be done without a device. What is not through by the deadline (default 570 s) is cut short or
# not reached; the table at the end says which, and the exit status is 0 only where every step was ok. The peers that
# gpu_peers.sh brought into DIR (default benchmarks/gpu_peers) are installed under build/ and timed. OUT then holds
# log.txt (what the steps printed), steps.txt (the table), speed.json and speed.md (which names the peers missing).
set -uo pipefail

deadline=570 dry='' peers=''
while [[ ${1:-} == --* ]]; do
  case $1 in
    --dry-run) dry=--dry-run && shift ;;
    --deadline) deadline=${2:?--deadline needs seconds} && shift 2 ;;
    --peers) peers=${2:?--peers needs a folder} && shift 2 ;;
    *) echo "unknown option $1" >&2 && exit 2 ;;
  esac
done
python=${1:-python3}
out=${2:-gpu_check_out}
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out" && out=$(cd "$out" && pwd)
peers=$(cd "${peers:-$root/benchmarks/gpu_peers}" 2> /dev/null && pwd)
cd "$root" || exit 2
export PYTHONPATH="$root:$root/tests"
export PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin" # where nvcc and compute-sanitizer are, if not in PATH

built=$root/build/gpu_check # apart from what lies in the tree
grace=5 # seconds from a step's end to its killing
if [[ $dry ]]; then planned=(build info emulated streams subset speed)
else
  planned=(build info streams suite)
  if compgen -G "$peers/*.whl" > /dev/null; then planned+=(peers); fi
  if [[ -d $peers/rahul-goel-fused-ssim ]]; then planned+=(rahul-goel); fi
  planned+=(speed triton memcheck racecheck initcheck)
fi
declare -A result
child=''
rm -f "$out"/speed.{json,md}
: > "$out/log.txt"

table() {
  local name failures=0
  for name in "${planned[@]}"; do
    [[ ${result[$name]:-} == "ok "* ]] || failures=1
    printf '%-10s %s\n' "$name" "${result[$name]:-not reached}"
  done > "$out/steps.txt"
  echo && cat "$out/steps.txt"
  return $failures
}
finish() {
  [[ -f $out/speed.md ]] && echo && cat "$out/speed.md"
  table || exit 1
}
interrupted() {
  [[ $child ]] && kill "$child" 2> /dev/null
  exit 143
}
trap finish EXIT
trap interrupted TERM INT

# budget LIMIT: the seconds a step may take, LIMIT at most and no more than are left; 0 where that is too little.
budget() {
  local left=$((deadline - SECONDS - grace)) limit=$1
  if ((left < limit)); then limit=$left; fi
  echo $((limit < 5 ? 0 : limit))
}

# step NAME LIMIT COMMAND...: keeps what it prints, goes on where it fails.
step() {
  local name=$1 limit start=$SECONDS status
  limit=$(budget "$2")
  shift 2
  if ((limit == 0)); then return 1; fi
  result[$name]="interrupted"
  printf '\n==== %s, at most %d s: %s\n' "$name" "$limit" "$*" >> "$out/log.txt"
  timeout --kill-after=$grace "$limit" "$@" >> "$out/log.txt" 2>&1 &
  child=$!
  wait $child
  status=$?
  child=''
  case $status in
    0) result[$name]="ok         $((SECONDS - start)) s" ;;
    124 | 137) result[$name]="cut short  $((SECONDS - start)) s" ;;
    *) result[$name]="failed     $((SECONDS - start)) s" && tail -n 5 "$out/log.txt" ;;
  esac
  printf '%-10s %s\n' "$name" "${result[$name]}"
  return $status
}

tests=("$python" -m benchmarks.gpu_tests -q -p no:cacheprovider)
if [[ -z $dry ]]; then
  arch=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
  step build 200 env TORCH_CUDA_ARCH_LIST="$arch" "$python" setup.py -q build_ext --inplace
  # setup.py builds without CUDA where nvcc fails: without kernels for this device nothing below would mean anything.
  step info 30 "$python" -m benchmarks.gpu_built || exit 1
  step streams 60 "${tests[@]}" tests/ssim/test_cuda_streams.py -k "not emulated and not triton"
  step suite 120 "${tests[@]}" -m "not slow" -k "cuda and not emulated and not streams" tests/ssim
  if [[ " ${planned[*]} " == *" peers "* ]]; then
    step peers 40 bash benchmarks/gpu_peers.sh install "$python" "$peers" "$built/peers"
    export PYTHONPATH="$PYTHONPATH:$built/peers" # last: nothing of it hides what the machine has
  fi
  # Where the timing keeps its time even so.
  if [[ " ${planned[*]} " == *" rahul-goel "* ]] && (($(budget 999) > 320)); then
    step rahul-goel 120 env TORCH_CUDA_ARCH_LIST="$arch" \
      bash benchmarks/gpu_peers.sh build "$python" "$peers" "$built/rahul-goel" &&
      export RAHUL_GOEL_FUSED_SSIM="$built/rahul-goel"
  fi
  step speed 190 "$python" -m benchmarks.gpu_speed --out "$out/speed" --seconds $(($(budget 190) - 15))
  # Triton compiles every combination of options on the spot: ahead of time for sm_90 these 34 took 64 s of one core of
  # an AMD EPYC, 41 of an earlier choice 90 s. Where one case has all the terms of another, only the larger one is here:
  # a longer step would leave the sanitizers nothing.
  tiles="test_triton_tiles and not (reflect or weighted and not mirrored)"
  exponents="sum_and_its and 7x10 and same and (0.3 or 0.7)"
  step triton 90 "${tests[@]}" -m "not slow" tests/ssim \
    -k "$tiles or triton and (streams or $exponents or test_pyramid and student or beyond)"
  # Each tensor an allocation of its own: of those that torch keeps and hands out in pieces the tools see only the whole.
  for tool in memcheck racecheck initcheck; do
    step "$tool" 90 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" benchmarks/gpu_subset.py
  done
else
  export TRITON_INTERPRET=1 # so that the Triton kernel goes through as well
  step build 500 env TORCH_CUDA_ARCH_LIST=9.0 "$python" setup.py -q build \
    --build-lib "$built/lib" --build-temp "$built/objects" || exit 1
  export PYTHONPATH="$built/lib:$PYTHONPATH" PYTHONSAFEPATH=1
  if [[ ${FUSED_SSIM_CUDA:-} != 0 ]] && command -v nvcc > /dev/null; then
    step info 60 "$python" -m benchmarks.gpu_built --capability 9.0 || exit 1
  else
    step info 60 "$python" -m fused_ssim
  fi
  step emulated 300 "${tests[@]}" tests/ssim/test_values.py -k "emulated and sum_and_its and 7x10"
  step streams 200 "${tests[@]}" tests/ssim/test_cuda_streams.py -k emulated
  step subset 100 "$python" benchmarks/gpu_subset.py --dry-run
  step speed 100 "$python" -m benchmarks.gpu_speed --out "$out/speed" --seconds $(($(budget 100) - 15)) --dry-run
fi
