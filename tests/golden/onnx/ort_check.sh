#!/bin/sh
# ort_check.sh - what test_onnx_write writes, run by onnxruntime: ort_check.sh PATH/TO/core_model_test_onnx_write
# Exit 77 (skipped) without node or the module onnxruntime-node (NODE_PATH says where it is).
set -eu
here=$(dirname "$(readlink -f "$0")")
[ -x "$1" ] || { echo "skipped: $1 is not built"; exit 77; }
command -v node >/dev/null || { echo "skipped: no node"; exit 77; }
node -e 'require("onnxruntime-node")' 2>/dev/null || { echo "skipped: no onnxruntime-node"; exit 77; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
QUANTD_ONNX_OUT=$out "$1" >/dev/null
node "$here/ort_check.js" "$out"
