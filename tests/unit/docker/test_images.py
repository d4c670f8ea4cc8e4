"""What can be known of the images without building them: no container engine is needed."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
DOCKERFILES = {name: (ROOT / "docker" / f"Dockerfile.{name}").read_text() for name in ("cpu", "cuda")}
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_server_is_pinned_and_nobody_special(name: str) -> None:
    lines = DOCKERFILES[name].splitlines()
    (base,) = (line.removeprefix("FROM ") for line in lines if line.startswith("FROM "))
    assert re.search(r":v?\d+\.\d+\.\d+", base)
    *_, user = (line.split()[1] for line in lines if line.startswith("USER "))
    assert user.isdigit() and int(user) > 0
    assert any("/health" in line for line in lines[-3:])


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_exists_and_is_not_ignored(name: str) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (.*)$", DOCKERFILES[name], re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert source in kept


def test_the_cpu_image_has_the_torch_of_the_set_up() -> None:
    (torch,) = re.findall(r'^TORCH="(.*)"$', (ROOT / "scripts" / "setup.sh").read_text(), re.MULTILINE)
    assert torch in DOCKERFILES["cpu"]


def test_the_cuda_image_has_a_vllm_that_is_supported() -> None:
    from vllm_dare.engine.installed import is_supported

    major, minor = re.findall(r"vllm-openai:v(\d+)\.(\d+)", DOCKERFILES["cuda"])[0]
    assert is_supported((int(major), int(minor)))


def test_installing_into_vllms_image_asks_for_no_other_vllm_or_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [need for need in project["dependencies"] if re.match(r"(vllm|torch)\b", need)]


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_pinned_healthy_and_confined(name: str) -> None:
    service: dict[str, Any] = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if "build" in service:  # the Dockerfile says the rest
        assert service["build"]["dockerfile"] in {f"docker/Dockerfile.{kind}" for kind in DOCKERFILES}
        return
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    assert int(service["user"].split(":")[0]) > 0
    assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_this_machines_alone_and_files_read_only(name: str) -> None:
    for port in SERVICES[name]["ports"]:
        assert port.startswith(("127.0.0.1:", "${LISTEN:-127.0.0.1:"))
    for volume in SERVICES[name]["volumes"]:
        source = volume.split(":")[0]
        assert source in COMPOSE["volumes"] or volume.endswith((":ro", ":${POOL_MODE:-ro}"))


def test_the_entry_point_reads_what_compose_sets() -> None:
    script = "".join((ROOT / "docker" / name).read_text() for name in ("entrypoint.sh", "server_settings.py"))
    for name in SERVICES["server-cuda"]["environment"]:
        assert name in script
