"""Checks the environment variables of `entrypoint.sh` and prints the server's `--additional-config`."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_dare.config import DareConfig
from vllm_dare.errors import ConfigError, DareError

EXAMPLES = {"LIVE": '{"max_tokens": 4194304}', "VERIFICATION": '{"preset": "content"}'}
MOST_DRAFTS = 128  # what vLLM verifies a step


def additional_config(variables: Mapping[str, str]) -> dict[str, Any]:
    """The server's `additional_config`, checked.

    Raises:
        DareError: one sentence that names the variable.
    """
    if not variables.get("MODEL"):
        raise ConfigError("MODEL is not set: give the model's directory or hub name, such as MODEL=/model.")
    drafts = variables.get("NUM_SPECULATIVE_TOKENS") or "16"
    if not (drafts.isascii() and drafts.isdigit() and 1 <= int(drafts) <= MOST_DRAFTS):
        raise ConfigError(
            f"NUM_SPECULATIVE_TOKENS must be a whole number from 1 to {MOST_DRAFTS}, not {drafts!r}."
        )
    live = _live(variables)
    settings: dict[str, Any] = {}
    if pool := variables.get("POOL"):
        _check_pool(Path(pool), learns=live is not None)
        settings["pool"] = pool
    if live is not None:
        settings["live"] = live
    if variables.get("VERIFICATION"):
        settings["verification"] = _json_object("VERIFICATION", variables)
    DareConfig.from_additional_config({"dare": settings})
    return {"dare": settings}


def _live(variables: Mapping[str, str]) -> dict[str, Any] | None:
    value = variables.get("LIVE") or "0"
    return {"0": None, "1": {}}[value] if value in ("0", "1") else _json_object("LIVE", variables)


def _json_object(name: str, variables: Mapping[str, str]) -> dict[str, Any]:
    try:
        value = json.loads(variables[name])
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a JSON object such as {EXAMPLES[name]}, not {variables[name]!r}.")
    return value


def _check_pool(directory: Path, *, learns: bool) -> None:
    """What the engine would say as well, but in terms of volumes."""
    if not learns and not (directory / "manifest.json").is_file():
        raise ConfigError(
            f"POOL is {directory}, but there is no pool (no manifest.json): mount one there that "
            "`vllm-dare pool build` made, or leave POOL out."
        )
    if learns and not os.access(directory, os.W_OK):
        raise ConfigError(
            f"LIVE needs a POOL directory that user {os.getuid()} may write into, and {directory} is not "
            "one: mount it writable, or leave LIVE out."
        )


if __name__ == "__main__":
    try:
        print(json.dumps(additional_config(os.environ)))
    except DareError as error:
        sys.exit(f"vllm-dare: {error}")
