import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ENTRYPOINT = Path(__file__).parents[3] / "docker" / "entrypoint.sh"
SPECULATION = {"method": "custom_class", "model": "vllm_dare.DareProposer", "num_speculative_tokens": 16}
# Servers write down how they were called; all else is Python's.
STUB_PYTHON = f"""#!/usr/bin/env bash
case "$*" in
    "-m vllm."*) echo "$$" >"$CALLED.pid"; printf '%s\\0' python3 "$@" >"$CALLED" ;;
    *is_cpu_vllm*) exit "$NO_CPU_BUILD" ;;
    *) exec {sys.executable} "$@" ;;
esac
"""
STUB_VLLM = """#!/usr/bin/env bash
printf '%s\\0' vllm "$@" >"$CALLED"
"""


class Container:
    """What `entrypoint.sh` finds around it, and what it does there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (("python3", STUB_PYTHON), ("vllm", STUB_VLLM)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def start(self, *arguments: str, cuda: bool = False, **variables: str) -> "subprocess.Popen[str]":
        environment = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(ENTRYPOINT.parents[1]),
            "CALLED": str(self.folder / "called"),
            "NO_CPU_BUILD": str(int(cuda)),
            **variables,
        }
        return subprocess.Popen([ENTRYPOINT, *arguments], env=environment, stderr=subprocess.PIPE, text=True)

    def command(self, *arguments: str, cuda: bool = False, **variables: str) -> list[str]:
        process = self.start(*arguments, cuda=cuda, **variables)
        assert process.communicate()[1] == ""
        assert process.returncode == 0
        return (self.folder / "called").read_text().rstrip("\0").split("\0")

    def error(self, **variables: str) -> str:
        process = self.start(**variables)
        message = process.communicate()[1]
        assert process.returncode == 1
        assert not (self.folder / "called").exists()
        return message


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


@pytest.fixture
def pool(tmp_path: Path) -> str:
    (tmp_path / "a pool").mkdir()
    (tmp_path / "a pool" / "manifest.json").write_text("{}")
    return str(tmp_path / "a pool")


def test_the_command_on_cpu(container: Container, pool: str) -> None:
    command = container.command("--max-model-len", "4096", MODEL="/models/a b", POOL=pool)
    speculation, settings = command[12], command[14]
    assert [*command[:12], command[13], *command[15:]] == [
        *("python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "/models/a b"),
        *("--host", "0.0.0.0", "--port", "8000", "--shutdown-timeout", "10"),
        *("--speculative-config", "--additional-config", "--max-model-len", "4096"),
    ]
    assert json.loads(speculation) == SPECULATION
    assert json.loads(settings) == {"dare": {"pool": pool}}


def test_the_command_on_cuda(container: Container) -> None:
    command = container.command(cuda=True, MODEL="org/name", HOST="127.0.0.1", PORT="9000")
    assert command[:7] == ["vllm", "serve", "org/name", "--host", "127.0.0.1", "--port", "9000"]
    assert json.loads(command[-1]) == {"dare": {}}


def test_all_settings(container: Container, pool: str) -> None:
    settings = {
        "NUM_SPECULATIVE_TOKENS": "8",
        "LIVE": '{"max_tokens": 5000}',
        "VERIFICATION": '{"preset": "careful", "never_relax": ["it\'s \\"so\\" $HOME"]}',
    }
    command = container.command(MODEL="m", POOL=pool, **settings)
    assert json.loads(command[command.index("--speculative-config") + 1])["num_speculative_tokens"] == 8
    assert json.loads(command[command.index("--additional-config") + 1])["dare"] == {
        "pool": pool,
        "live": {"max_tokens": 5000},
        "verification": {"preset": "careful", "never_relax": ['it\'s "so" $HOME']},
    }


@pytest.mark.parametrize(("value", "live"), [("1", {}), ("0", None), ("", None)])
def test_live(container: Container, tmp_path: Path, value: str, live: dict[str, int] | None) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    command = container.command(MODEL="m", POOL=str(tmp_path), LIVE=value)
    assert json.loads(command[-1])["dare"].get("live") == live


def test_learning_may_begin_with_an_empty_directory(container: Container, tmp_path: Path) -> None:
    command = container.command(MODEL="m", POOL=str(tmp_path), LIVE="1")
    assert json.loads(command[-1])["dare"] == {"pool": str(tmp_path), "live": {}}


def test_the_server_takes_the_shells_place(container: Container) -> None:
    """Else the signals of `docker stop` would not reach it."""
    process = container.start(MODEL="m")
    process.communicate()
    assert int((container.folder / "called.pid").read_text()) == process.pid


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "MODEL is not set: give the model's directory or hub name, such as MODEL=/model."),
        ({"MODEL": ""}, "MODEL is not set: give the model's directory or hub name, such as MODEL=/model."),
        (
            {"NUM_SPECULATIVE_TOKENS": "129"},
            "NUM_SPECULATIVE_TOKENS must be a whole number from 1 to 128, not '129'.",
        ),
        (
            {"NUM_SPECULATIVE_TOKENS": "16, 1"},
            "NUM_SPECULATIVE_TOKENS must be a whole number from 1 to 128, not '16, 1'.",
        ),
        (
            {"POOL": "/nowhere"},
            "POOL is /nowhere, but there is no pool (no manifest.json): mount one there that `vllm-dare pool "
            "build` made, or leave POOL out.",
        ),
        (
            {"POOL": "/nowhere", "LIVE": "1"},
            f"LIVE needs a POOL directory that user {os.getuid()} may write into, and /nowhere is not one: "
            "mount it writable, or leave LIVE out.",
        ),
        ({"LIVE": "yes"}, "LIVE must be a JSON object such as {\"max_tokens\": 4194304}, not 'yes'."),
        (
            {"LIVE": "1"},
            "The setting dare.live needs dare.pool, the directory to learn into: set it (it is made if it "
            "does not exist), or leave dare.live out.",
        ),
        (
            {"VERIFICATION": "[1]"},
            'VERIFICATION must be a JSON object such as {"preset": "content"}, not \'[1]\'.',
        ),
        (
            {"VERIFICATION": '{"preset": "lax"}'},
            "Bad value 'lax' for the setting dare.verification.preset: the presets are paper, content, "
            "careful, fast, fly.",
        ),
    ],
    ids=str,
)
def test_bad_variables_are_said_in_one_sentence(
    container: Container, variables: dict[str, str], sentence: str
) -> None:
    given = variables if not variables or "MODEL" in variables else {"MODEL": "m", **variables}
    assert container.error(**given) == f"vllm-dare: {sentence}\n"
