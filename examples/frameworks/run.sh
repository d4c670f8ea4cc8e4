#!/usr/bin/env bash
# From tables to knowledge about users: groups of similar users, prompts, texts. Each text drafts for the next ones.
# By default with the prompts that the demo model was trained on; `run.sh kar` takes those of a framework.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

framework="${1:-examples/frameworks/own_framework.py:build}"
data=examples/frameworks
out=out/frameworks
mkdir -p "$out"
dare=(.venv/bin/python -m vllm_dare.cli.app)

"${dare[@]}" group users "$data/interactions.csv" --min-weight 4 --output "$out/groups" --overwrite

"${dare[@]}" prompts --framework "$framework" --about users \
    --interactions "$data/interactions.csv" --items "$data/items.csv" --users "$data/users.csv" \
    --groups "$out/groups" --output "$out/prompts.jsonl" --overwrite

# a short start and a small cache for an example; leave --engine-args out in production
"${dare[@]}" generate --model examples/demo/model --prompts "$out/prompts.jsonl" \
    --pool "$out/pool" --learn --max-num-seqs 4 --max-tokens 300 \
    --engine-args '{"enforce_eager": true, "kv_cache_memory_bytes": 1073741824}' \
    --output "$out/knowledge.jsonl" --overwrite

head -n 1 "$out/knowledge.jsonl"
