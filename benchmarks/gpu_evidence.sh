#!/usr/bin/env bash
# The evidence on colour images of 32 x 32 with one GPU, as far as it gets in some minutes; call it again to go on.
# First plain, Hungarian and KNN for flow matching and v and DDIM against distilled DDIM, one seed; then everything else.
#
#   benchmarks/gpu_evidence.sh OUT [MINUTES]      MINUTES: of this call, by default 8.5
#
# The kernels must be built (benchmarks/gpu_suite.sh). Unfinished cells are kept in runs/evidence_gpu, figures are copied
# to OUT; commit them below benchmarks/results/evidence.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$1"
out=$(cd "$1" && pwd) minutes=${2:-8.5} kept=$PWD/runs/evidence_gpu
python=${PYTHON:-python3}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
SECONDS=0
common=(--set cifar32 --device cuda --work "$kept/work" --results "$kept/results")

# What is done already costs a call only the time to look. $1: module; the rest: its options.
go() {
  local left
  left=$("$python" -c "print(round($minutes - $SECONDS / 60, 2))")
  if "$python" -c "import sys; sys.exit($left < 0.5)"; then
    "$python" -m "benchmarks.evidence.$1" "${common[@]}" --minutes "$left" "${@:2}"
  fi
}
go run --seeds 1 --only '^(flow|v)-(plain|hungarian|knn-l24)$|^eps-plain$'
go solvers --seeds 1 --only '^eps-plain$' --solvers '^ddim$'
go run --by seed
go solvers
mkdir -p "$kept/results"
cp -r "$kept/results/." "$out/"
