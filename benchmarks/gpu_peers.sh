#!/usr/bin/env bash
# The peers of a GPU benchmark, for a machine with no network. Beforehand, where there is one:
#   benchmarks/gpu_peers.sh fetch [--python-version 3.12] [--dest DIR] [RAHUL_GOEL]
# puts wheels of fussim and pytorch-msssim into benchmarks/gpu_peers/ (ignored by git), and the source of
# rahul-goel/fused-ssim, RAHUL_GOEL being a folder or a git URL. There, as gpu_check.sh does by itself:
#   benchmarks/gpu_peers.sh install PYTHON FROM TO   every wheel, into the folder TO
#   benchmarks/gpu_peers.sh build PYTHON FROM TO     rahul-goel/fused-ssim, compiled, into a folder of its own
# Who is missing is named, and is no reason to stop.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
source_name=rahul-goel-fused-ssim
failed=0

missing() {
  echo "missing: $*" >&2
  failed=1
}

fetch() {
  local version=3.12 dest=$here/gpu_peers platforms=() name n
  while [[ ${1:-} == --* ]]; do
    case $1 in
      --python-version) version=${2:?} && shift 2 ;;
      --dest) dest=${2:?} && shift 2 ;;
      *) echo "unknown option $1" >&2 && exit 2 ;;
    esac
  done
  mkdir -p "$dest"
  for n in 2_34 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${n}_x86_64"); done
  platforms+=(--platform manylinux2014_x86_64)
  for name in fussim pytorch-msssim; do
    "${PYTHON:-python3}" -m pip download -q --no-deps --only-binary=:all: --implementation cp \
      --python-version "$version" "${platforms[@]}" --dest "$dest" "$name" || missing "$name"
  done
  if [[ -z ${1:-} ]]; then
    missing "rahul-goel/fused-ssim: no folder or git URL was given"
    return
  fi
  rm -rf "${dest:?}/$source_name"
  if [[ -d $1 ]]; then cp -r "$1" "$dest/$source_name"; else git clone -q --depth 1 "$1" "$dest/$source_name"; fi
  if [[ -f $dest/$source_name/setup.py ]]; then rm -rf "$dest/$source_name/.git" "$dest/$source_name/build"
  else missing "rahul-goel/fused-ssim: no setup.py in $1"; fi
}

install() {
  local python=$1 from=$2 to=$3 wheel
  for wheel in "$from"/*.whl; do # one by one: one that does not fit keeps no other out
    "$python" -m pip install -q --no-index --no-deps --upgrade --target "$to" "$wheel" || missing "$wheel"
  done
}

build() {
  local python=$1 from=$2 to=$3
  "$python" -m pip install -q --no-index --no-deps --no-build-isolation --upgrade --target "$to" "$from/$source_name" ||
    missing rahul-goel/fused-ssim
}

case ${1:-} in
  fetch) fetch "${@:2}" ;;
  install) install "${@:2}" ;;
  build) build "${@:2}" ;;
  *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2 && exit 2 ;;
esac
exit $failed
