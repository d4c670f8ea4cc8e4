"""The server's changes of its pool: each is a `vllm-dare pool` command, in a process of its own.

So neither its memory nor its time is the server's, and it does what the command line does.
"""

import asyncio
import json
import sys
from typing import Any

from vllm_dare.errors import PoolError

_CHILD = "import os; os.nice(10); from vllm_dare.__main__ import main; main()"


async def run_pool_command(*arguments: str) -> Any:
    """Run `vllm-dare pool` at low priority, and return the figures that it prints as JSON; None for none.

    Raises:
        PoolError: what the command said was wrong.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _CHILD,
        "pool",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode != 0:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise PoolError("".join(last).removeprefix("Error: ") or f"exit status {process.returncode}")
    return json.loads(output) if output.lstrip().startswith(b"{") else None
