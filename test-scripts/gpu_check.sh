#!/usr/bin/env bash
# Runs the proof of GPU's CUDA path on this machine; see gpu_check.py. Needs an NVIDIA GPU and a Python with torch and
# numpy (PYTHON=…, by default python3), and nothing installed of this repository.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
missing="$("$python" -c 'import importlib.util as u; print(*(m for m in ("torch", "numpy") if u.find_spec(m) is None))')"
if [ -n "$missing" ]; then
    echo "$python has no $missing, so the CUDA path cannot run; name a Python that has: PYTHON=… $0" >&2
    exit 3
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$root/test-scripts/gpu_check.py" "$@"
