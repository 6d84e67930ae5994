#!/usr/bin/env bash
# Compiles every CUDA kernel for every architecture that the build embeds, and fails where the compiler warns, or spills
# registers to memory: a kernel that spills is slow, and nothing else says so. Needs no GPU.
#
# The compiler is $FUSED_NVCC, $CUDA_HOME/bin/nvcc or nvcc; else it comes as Python packages into a cache folder outside the
# tree. Says SKIPPED and ends well where there is neither.
set -euo pipefail
cd "$(dirname "$0")"

packages='nvidia-cuda-nvcc==13.0.* nvidia-cuda-crt==13.0.* nvidia-nvvm==13.0.* nvidia-cuda-runtime==13.0.* nvidia-cuda-cccl==13.0.*'

skip() { echo "SKIPPED: kernels/check.sh: $1"; exit 0; }

find_nvcc() {
  local candidate
  for candidate in "${FUSED_NVCC:-}" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "$(command -v nvcc || true)"; do
    if [ -n "$candidate" ] && [ -x "$candidate" ]; then echo "$candidate"; return; fi
  done
  command -v python3 >/dev/null || return 0
  local venv="${XDG_CACHE_HOME:-$HOME/.cache}/fused/nvcc-13.0"
  if [ ! -e "$venv/installed" ]; then
    python3 -m venv "$venv" >&2 || return 0
    # shellcheck disable=SC2086 # a list of packages
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir $packages >&2 || return 0
    touch "$venv/installed"
  fi
  echo "$venv"/lib/python3*/site-packages/nvidia/cu13/bin/nvcc
}

nvcc=$(find_nvcc)
[ -n "$nvcc" ] || skip "there is no nvcc, and none can be installed"
"$nvcc" --version | tail -n 2

output=$(mktemp -d)
trap 'wait; rm -rf "$output"' EXIT

# compile FILE ARCHITECTURE: what the compiler says about each kernel goes to a file.
compile() {
  local name=$output/$(basename "$1").$2
  "$nvcc" -std=c++17 -O3 -cubin -Werror all-warnings -Xptxas -v,--warn-on-spills "$1" -o "$name.cubin" \
    "-gencode=arch=compute_${2#sm_},code=$2" > "$name.log" 2>&1 || { cat "$name.log" >&2; exit 1; }
}

architectures=$(sed -n '/^const ARCHITECTURES/p' build.rs | grep -o 'sm_[0-9a-z]*')
[ -n "$architectures" ] || { echo "build.rs names no architecture" >&2; exit 1; }
for architecture in $architectures; do
  for file in cuda/*.cu; do
    compile "$file" "$architecture" &
    # Two at a time: each takes a core and some hundred megabytes.
    if [ "$(jobs -rp | wc -l)" -ge 2 ]; then wait -n; fi
  done
done
while [ -n "$(jobs -p)" ]; do wait -n; done

num_kernels=$(cat "$output"/*.log | grep -c 'Compiling entry function') || true
[ "$num_kernels" -gt 0 ] || { echo "the compiler names no kernel: has its output changed?" >&2; exit 1; }
if grep -H -B2 -E '[1-9][0-9]* bytes (spill|stack)' "$output"/*.log >&2; then
  echo "a kernel spills registers" >&2
  exit 1
fi
echo "$num_kernels kernels compile for" $architectures "without spills"
