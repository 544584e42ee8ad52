#!/bin/bash
# VNN-COMP: install_tool.sh v1 — a virtual environment beside these scripts, with the versions in constraints.txt.
set -euo pipefail
[ "${1:-}" = v1 ] || { echo "expected the protocol version v1, got '${1:-}'" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
python3 -m venv "$here/.venv"
"$here/.venv/bin/pip" install -q -c "$here/../constraints.txt" "$here/..[onnx,tflite,vnnlib]"
"$here/.venv/bin/qertify" --version
