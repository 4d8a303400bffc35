#!/usr/bin/env bash
# The evidence on colour images of 32 x 32 with one GPU, as far as it gets in some minutes; call it again to go on.
# First plain and Hungarian for flow matching and v, DDIM against distilled DDIM, then KNN, one seed; then the rest.
#
#   benchmarks/gpu_evidence.sh OUT [MINUTES]      MINUTES: of this call, by default 7 (a cell may go over by one)
#
# Needs the kernels, and the packages diffusers and Pillow. DATA: the folder with train.zip and test.zip of CIFAR-10.
# Unfinished cells are kept in runs/evidence_gpu, what is finished goes to OUT as evidence.tar: unpack that below
# benchmarks/results/evidence and commit it; a call on another machine goes on from there. COMMIT: where there is no git.
# DEVICE=cpu QUICK=1 takes two steps of a tiny network on the CPU.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$1"
out=$(cd "$1" && pwd) minutes=${2:-7} kept=${KEPT:-$PWD/runs/evidence_gpu}
python=${PYTHON:-python3} data=${DATA:-$PWD/../shared/data/cifar10-jpeg}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
SECONDS=0
# What is missing is said before minutes are spent.
"$python" -c 'import diffusers, PIL, pydiffaccel.ops'
ls "$data/train.zip" "$data/test.zip" >/dev/null
mkdir -p "$kept/results/cifar32" "$kept/work/cifar32"
cp -rn benchmarks/results/evidence/cifar32/. "$kept/results/cifar32/" 2>/dev/null || true
cp -n "$kept/results/cifar32/judge.safetensors" "$kept/work/cifar32/" 2>/dev/null || true
give() {
  cp "$kept"/work/cifar32/judge.safetensors "$kept/results/cifar32/" 2>/dev/null || true
  tar -C "$kept/results" -cf "$out/evidence.tar" cifar32
}
trap give EXIT
common=(--set cifar32 --device "${DEVICE:-cuda}" --data "$data" --work "$kept/work" --results "$kept/results")
[ -z "${QUICK:-}" ] || common+=(--quick)

# $1: module; the rest: its options.
go() {
  local left
  left=$("$python" -c "print(round($minutes - $SECONDS / 60, 2))")
  if "$python" -c "import sys; sys.exit($left < 0.2)"; then
    "$python" -m "benchmarks.evidence.$1" "${common[@]}" --minutes "$left" "${@:2}"
  fi
}
go run --seeds 1 --only '^(flow|v)-(plain|hungarian)$|^eps-plain$'
go solvers --seeds 1 --only '^eps-plain$' --solvers '^ddim$'
go run --seeds 1 --only '^(flow|v)-knn-l24$'
go run --by seed
go solvers
