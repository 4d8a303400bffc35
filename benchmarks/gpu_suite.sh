#!/usr/bin/env bash
# Everything that needs a GPU, in one command: builds the CUDA library, runs the whole test suite with the `cuda` mark,
# compute-sanitizer on every kernel, and every benchmark on the GPU and the CPU. Leaves JSON, logs and a summary in OUT.
#   benchmarks/gpu_suite.sh OUT          needs: nvcc, torch with CUDA, pytest, pybind11, cmake, ninja (PYTHON=python3)
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: benchmarks/gpu_suite.sh OUT" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
summary=$out/summary.txt
: >"$summary"
failed=0
say() { printf '%s\n' "$*" | tee -a "$summary"; }
# step NAME LIMIT_S COMMAND...: runs it with a log of its own; a failure is noted and the next step still runs.
step() {
  local name=$1 limit=$2 start=$SECONDS rc=0
  shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || rc=$?
  say "$name: $([ $rc -eq 0 ] && echo ok || echo "FAILED ($rc)") in $((SECONDS - start)) s"
  [ $rc -eq 0 ] || { failed=1; tail -n 15 "$out/$name.log"; }
}

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee -a "$summary"
"$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"; print("torch", torch.__version__, "CUDA", torch.version.cuda)' | tee -a "$summary"

build=$PWD/build/gpu
configure=(-S . -B "$build" -GNinja "-DPython_EXECUTABLE=$(command -v "$python")" "-DDIFFACCEL_CUDA_ARCHS=${DIFFACCEL_CUDA_ARCHS:-native}")
step configure 300 cmake "${configure[@]}"
step build 900 cmake --build "$build" --parallel "$(nproc)"
step install 60 cmake --install "$build" --prefix pydiffaccel
export PYTHONPATH=$PWD DIFFACCEL_BUILD_DIR=$build PYTHONUNBUFFERED=1
step info 120 "$python" -c 'import pydiffaccel as da; info = da.build_info(); print(info); assert info["cuda_kernels"], info["cuda_note"]'
step tests_cuda 600 "$python" -m pytest tests -m cuda -q --durations=10
for tool in memcheck racecheck synccheck initcheck; do
  if command -v compute-sanitizer >/dev/null; then
    step "sanitizer_$tool" 600 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" benchmarks/touch_kernels.py
  else
    say "sanitizer_$tool: left out (compute-sanitizer not found)"
  fi
done
# Packages of the extra [train] that a benchmark needs; machines without them run the others.
declare -A needs=([bench_training]=diffusers [bench_data]=PIL [bench_coupling]=PIL [bench_sinkhorn]=PIL)
for bench in benchmarks/bench_*.py; do
  name=$(basename "$bench" .py)
  package=${needs[$name]:-torch}
  if ! "$python" -c "import $package" 2>/dev/null; then
    say "${name}_cuda: left out (no $package)"
    continue
  fi
  extra=()
  [ "$name" = bench_distill ] && extra=(--quick)  # many small steps on the host
  step "${name}_cuda" 300 "$python" "$bench" --device cuda "${extra[@]}" --json "$out/${name}_cuda.json"
done
step tests_all 900 "$python" -m pytest tests -q --durations=10
for log in "$out"/bench_*.log; do cat "$log" >>"$summary"; done
say "results in $out"
exit $failed
