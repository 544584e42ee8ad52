#!/bin/bash
# VNN-COMP: prepare_instance.sh v1 CATEGORY MODEL PROPERTY — nothing is converted; fails for models that can't be read.
set -euo pipefail
[ "${1:-}" = v1 ] && [ $# -eq 4 ] || { echo "usage: $0 v1 CATEGORY MODEL PROPERTY" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
PATH="$here/.venv/bin:$PATH"
[ -r "$4" ] || { echo "$4: no such file" >&2; exit 1; }
qertify info "$3" > /dev/null
