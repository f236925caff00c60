#!/usr/bin/env bash
# What needs a GPU, in about 25 minutes of a large one: the tests marked gpu, a comparison of unlearning methods on a Llama
# of 100 M parameters, and PGD training on CIFAR10 with AutoAttack beside its peers. Writes OUT/results.json, OUT/table.md.
#   benchmarks/gpu.sh OUT FOLDER_OF_CIFAR10            texts of LUME and TOFU lie where LIT_MODULES_DATA says
#   benchmarks/gpu.sh OUT FOLDER_OF_CIFAR10 --toy      a few steps on the CPU, to try the script
set -euo pipefail
out=$1 cifar=$2 size=${3:-}
cd "$(dirname "$0")/.."
mkdir -p "$out"
if [ "$size" != --toy ]; then
    python -m pytest -q -m gpu --junitxml="$out/tests.xml" || echo "Some GPU tests failed; see $out/tests.xml." >&2
fi
python benchmarks/gpu.py --folder "$out" --cifar "$cifar" $size
