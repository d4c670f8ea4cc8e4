"""``manifest.json``: which segments a pool has, and which group each belongs to."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass

from vllm_dare.drafting.blend import Blend
from vllm_dare.errors import PoolError
from vllm_dare.pool.files import open_file, signature, sync, temporary_file
from vllm_dare.pool.json_reader import parse_json
from vllm_dare.pool.pivots import decode
from vllm_dare.pool.segment import Provenance, Segment
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.shown import shown_name

MANIFEST_NAME = "manifest.json"
SEGMENTS_DIRECTORY = "segments"
MANIFEST_FORMAT_VERSION: Literal[1] = 1

# A segment's facts and its name, in a list of its own, have about twenty bytes a value.
_LEAST_BYTES_A_VALUE = 16
_FEW_VALUES = 1000
_FEW_ERRORS = 100

Count = Annotated[int, Field(ge=0, lt=2**63)]
# Names become paths: these patterns keep them inside the pool directory.
SegmentName = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
AssignmentsName = Annotated[str, Field(pattern=r"^assignments-[0-9a-f]{32}\.safetensors$")]
RouterName = Annotated[str, Field(pattern=r"^router-[0-9a-f]{32}\.safetensors$")]
# Of a list of a million wrong names, one error is enough.
SegmentNames = Annotated[list[SegmentName], FailFast()]
RouterNames = Annotated[list[RouterName], FailFast()]


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class SegmentInfo:
    """What the manifest says of one segment, so that a summary need not open it.

    Not a BaseModel: with tens of thousands of groups, these make up most of the time it takes to open a pool.
    """

    num_documents: Count
    num_tokens: Count
    num_bytes: Count
    provenance: Provenance

    @classmethod
    def of(cls, segment: Segment) -> "SegmentInfo":
        """The facts of a segment that was just written."""
        header = segment.header
        return cls(header.num_documents, header.num_tokens, segment.num_bytes, header.provenance)


class Manifest(BaseModel):
    """The content of ``manifest.json``.

    Attributes:
        format_version: 1.
        tokenizer: the tokenizer of every segment.
        groups: group name to the names of its segments.
        global_segments: names of the segments that hold every document of the pool; empty without them.
        segments: name to facts, for every segment that is referenced and no other.
        assignments: name of the file that says who belongs to which group; None without one.
        routers: names of the files that turn histories and attributes into groups.
        blend: how far the drafter trusts the pool's contexts, see `vllm_dare.drafting.blend.Blend.encode`;
            None if that was not fitted.
        pivots: after which contexts relaxing is not a matter of wording, see `vllm_dare.pool.pivots`; None
            if nobody looked.
        created_at: when the pool was built.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = MANIFEST_FORMAT_VERSION
    tokenizer: TokenizerInfo
    groups: dict[str, SegmentNames]
    global_segments: SegmentNames
    segments: dict[SegmentName, SegmentInfo]
    assignments: AssignmentsName | None = None
    routers: RouterNames = Field(default_factory=list)
    blend: str | None = None
    pivots: str | None = None
    created_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def _references_exist(self) -> Self:
        referenced = {name for names in self.groups.values() for name in names}.union(self.global_segments)
        if referenced != self.segments.keys():
            raise ValueError("the segments referenced and the segments described differ")
        return self

    @field_validator("blend")
    @classmethod
    def _blend_is_readable(cls, blend: str | None) -> str | None:
        if blend is not None:
            Blend.decode(blend)
        return blend

    @field_validator("pivots")
    @classmethod
    def _pivots_are_readable(cls, pivots: str | None) -> str | None:
        if pivots is not None:
            decode(pivots)
        return pivots


def is_pool(directory: Path) -> bool:
    """Whether ``directory`` holds a manifest."""
    return (directory / MANIFEST_NAME).is_file()


def manifest_signature(directory: Path) -> tuple[int, ...]:
    """What changes with every replacement of the manifest; asks the file system, nothing else.

    Raises:
        OSError: there is none.
    """
    return signature(directory / MANIFEST_NAME)


def check_is_pool(directory: Path) -> None:
    """Refuse a directory without a manifest.

    Raises:
        PoolError: ``directory`` is not a pool.
    """
    if not is_pool(directory):
        raise PoolError(
            f"{directory} is not a pool directory (it has no {MANIFEST_NAME}); "
            "build one with `vllm-dare pool build`."
        )


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a pool.

    Raises:
        PoolError: ``directory`` is not a pool, or its manifest is unreadable, damaged or of a newer format.
    """
    check_is_pool(directory)
    path = directory / MANIFEST_NAME
    try:
        with open_file(path) as file:
            content = file.read()
    except OSError as error:
        raise PoolError(f"Cannot read {path} ({error.strerror}); check its permissions.") from None
    return parse_manifest(str(path), content)


def parse_manifest(name: str, content: bytes) -> Manifest:
    """The manifest that a file holds.

    Args:
        name: what to call the file in messages.
        content: what is in it.

    Raises:
        PoolError: it is damaged or of a newer format.
    """
    try:
        found = parse_json(content, len(content) // _LEAST_BYTES_A_VALUE + _FEW_VALUES)
    except ValueError as error:
        raise PoolError(
            f"The pool manifest {name} is damaged (content: {error}); rebuild the pool."
        ) from None
    try:
        return Manifest.model_validate(found)
    except ValidationError as error:
        raise PoolError(_refusal(name, found, error)) from None


def encode_manifest(manifest: Manifest) -> bytes:
    """The content of a manifest's file."""
    return manifest.model_dump_json(indent=1).encode() + b"\n"


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Replace the manifest of ``directory``: a reader, or a crash, meets the old one or the new one."""
    with temporary_file(directory) as file:
        file.write(encode_manifest(manifest))
    os.replace(file.name, directory / MANIFEST_NAME)
    sync(directory)


def _refusal(path: str, found: Any, error: ValidationError) -> str:
    version = found.get("format_version") if isinstance(found, dict) else None
    if isinstance(version, int) and version > MANIFEST_FORMAT_VERSION:
        return f"The pool manifest {path} was written by a newer vllm-dare; upgrade vllm-dare to read it."
    return f"The pool manifest {path} is damaged ({_what_is_wrong(error)}); rebuild the pool."


def _what_is_wrong(error: ValidationError) -> str:
    if error.error_count() > _FEW_ERRORS:  # a description of each would take a kilobyte
        return f"{error.error_count()} errors"
    first = error.errors()[0]
    where = shown_name(".".join(map(str, first["loc"]))) or "content"
    return f"{where}: {first['msg']}"
