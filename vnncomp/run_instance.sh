#!/bin/bash
# VNN-COMP: run_instance.sh v1 CATEGORY MODEL PROPERTY RESULT_FILE TIMEOUT — writes sat, unsat, timeout, unknown or error.
set -uo pipefail
[ "${1:-}" = v1 ] && [ $# -eq 6 ] || { echo "usage: $0 v1 CATEGORY MODEL PROPERTY RESULT_FILE TIMEOUT" >&2; exit 1; }
here=$(cd "$(dirname "$0")" && pwd)
PATH="$here/.venv/bin:$PATH"
qertify vnnlib "$3" "$4" --result-file "$5" --timeout "$6"
status=$?
case $status in
    0 | 1 | 3) exit 0 ;;
    *) echo error > "$5"; exit "$status" ;;
esac
