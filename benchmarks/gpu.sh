#!/usr/bin/env bash
# The figures of a GPU, on the results page: in bfloat16, the step of training at the paper's base and big size on packed
# rows of 256 tokens beside PyTorch eager and compiled, MFU, decoding beside transformers, scaling with cuDNN's attention.
#
#     bash benchmarks/gpu.sh [--quick] [--data DIR] [--model DIR] [--page FILE]
#
# Needs pip install -e ".[cuda13,bench]" (or cuda12) and PyTorch for CUDA. Without a GPU it takes the figures of the CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

records="${RECORDS:-docs/benchmarks.jsonl}"
python="${PYTHON:-python}"

# JAX takes most of a GPU's memory when it starts, unless told not to; here it shares the GPU with PyTorch.
export XLA_PYTHON_CLIENT_PREALLOCATE=false

if command -v nvidia-smi > /dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
else
    echo "nvidia-smi was not found, so these figures are for the CPU." >&2
fi

# A benchmark that this machine can't run says why, and the others go on.
"$python" -m benchmarks roofline memory scaling startup decode --out "$records" --page docs/benchmarks.md "$@"
