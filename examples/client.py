"""Ask the server of `examples/server.sh`; `vllm_xargs` tells it whose texts to draft from."""

import json
import os
from pathlib import Path

from openai import OpenAI

from vllm_dare import request_args

PROMPTS = Path(__file__).resolve().parent / "demo" / "prompts.jsonl"


def main() -> None:
    client = OpenAI(base_url=f"http://127.0.0.1:{os.environ.get('PORT', '8000')}/v1", api_key="none")
    with PROMPTS.open() as lines:
        row = json.loads(next(lines))
    strict = request_args(group=row["group"])
    # Relaxed verification for this request alone: faster, but the wording may change.
    relaxed = request_args(group=row["group"], verification="relaxed")
    for metadata in (strict, relaxed):
        completion = client.completions.create(
            model="demo",
            prompt=row["prompt"],
            max_tokens=512,
            temperature=0,
            extra_body={"vllm_xargs": metadata},
        )
        print(f"{metadata}\n{completion.choices[0].text.strip()}\n")


if __name__ == "__main__":
    main()
