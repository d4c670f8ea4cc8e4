#!/usr/bin/env bash
# The OpenAI-compatible server with drafts from a retrieval pool: vLLM's own command with two more options.
# Run `make demo` once before: it builds the pool. Then, from another terminal: python examples/client.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"

exec vllm serve examples/demo/model \
    --served-model-name demo \
    --host 127.0.0.1 --port "${PORT:-8000}" \
    --enforce-eager --kv-cache-memory-bytes 1G \
    --speculative-config '{"method": "custom_class", "model": "vllm_dare.DareProposer", "num_speculative_tokens": 16}' \
    --additional-config '{"dare": {"pool": "out/demo/pool"}}'
