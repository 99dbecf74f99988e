#!/usr/bin/env bash
# All that waits for an NVIDIA card, in 20 minutes, the most wanted first. What is done is on the disk at once; a part that
# takes longer than its share is cut off, and the next one starts.
#
#     tests/card.sh [FOLDER]                       in the folder of a clone; runs/card unless told otherwise
#     PYTHON=.venv/bin/python TORCH=~/torch/bin/python TOTAL=3600 tests/card.sh
#
# PYTHON has CuPy (pip install "cupy-cuda12x[ctk]") and what requirements.txt names; TORCH a PyTorch for CUDA. TOTAL: seconds.
# The same command goes on with the trainings that were cut off.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python} torch=${TORCH:-$python} total=${TOTAL:-1200} out=${1:-runs/card} failed=0

card=$("$python" -c '
import sys
from enn_np.lab.results import card_name
try:
    print(card_name())
except (ValueError, ImportError) as error:
    sys.exit(f"card.sh: no card to run on: {error}")
') || exit 2
mkdir -p "$out/results" || exit 2
printf '%s\n%s\n' "$card" "$(git describe --always --dirty)" | tee "$out/card.txt"

part() { # name, share of the time in per mille, arguments of python
  local name=$1 seconds=$((total * $2 / 1000)) status
  shift 2
  echo "== $name, at most $seconds s: python $*" | tee -a "$out/$name.txt"
  timeout --signal=INT --kill-after=10 "$seconds" "$python" "$@" 2>&1 | tee -a "$out/$name.txt"
  status=${PIPESTATUS[0]}
  ((status == 0)) || { failed=1 && echo "== $name ended with status $status (124: cut off)" | tee -a "$out/$name.txt"; }
}

part tests 100 -m pytest -m gpu
for suffix in "" -large; do # the paper's sizes; H 1024
  for cell in engram lstm gru rnn; do
    share=25
    [ "$cell" = engram ] && share=120 # torch.compile takes its time
    part "bench-$cell$suffix" "$share" -m tests.bench --device cuda --works "$cell$suffix" --torch "$torch" \
      --json "$out/bench-$cell$suffix.json"
  done
done
for model in engram lstm gru rnn; do
  part "mnist-$model" 95 -m enn_np run mnist/paper --models "$model" --seeds 1 --device cuda --results "$out/results"
done
part recall32 130 -m enn_np run recall32 --models binding lstm --rates 2e-3 --seeds 1 --device cuda --results "$out/results"
exit "$failed"
