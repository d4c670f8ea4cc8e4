"""What a pool holds, in a few figures."""

from collections.abc import Sequence

from pydantic import BaseModel

from vllm_dare.drafting.blend import Blend
from vllm_dare.pool.manifest import Manifest
from vllm_dare.pool.pivots import decode
from vllm_dare.pool.segment import Provenance
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.routing.router_file import RouterFile, RouterKind


class GroupSummary(BaseModel):
    """One group's documents and tokens."""

    name: str
    num_documents: int
    num_tokens: int


class RouterSummary(BaseModel):
    """One router: its kind, its groups, and the items and attribute values that it knows."""

    kind: RouterKind
    num_groups: int
    num_items: int
    num_attribute_values: int


class PoolSummary(BaseModel):
    """The figures that `vllm-dare pool info` prints.

    Attributes:
        tokenizer: the tokenizer of every token id.
        created_at: ISO 8601.
        provenance: how the text was written; several if the segments differ.
        num_groups: groups that have text.
        groups_draft: whether a group's text drafts apart from the global text, see `Blend.asks_groups`; False
            where there are no groups.
        num_documents: documents, each counted once.
        num_tokens: their tokens, each counted once.
        num_segments: files.
        num_bytes: size of all segments; a document in a group and in the global segment takes space in both.
        has_global_segment: whether requests without a group find text too.
        has_assignments: whether the pool knows who belongs to which group.
        routers: what turns histories and attributes into groups.
        num_pivots: contexts after which relaxing is not a matter of wording; None if nobody looked.
        biggest_groups: by tokens, the biggest first.
    """

    tokenizer: TokenizerInfo
    created_at: str
    provenance: list[Provenance]
    num_groups: int
    groups_draft: bool
    num_documents: int
    num_tokens: int
    num_segments: int
    num_bytes: int
    has_global_segment: bool
    has_assignments: bool
    routers: list[RouterSummary]
    num_pivots: int | None
    biggest_groups: list[GroupSummary]


def summarize(manifest: Manifest, routers: Sequence[RouterFile] = (), num_biggest: int = 10) -> PoolSummary:
    """Sum up a manifest and its routers, with its ``num_biggest`` biggest groups."""
    groups = [_group(manifest, name, segments) for name, segments in manifest.groups.items()]
    everything = _group(manifest, "", manifest.global_segments)
    counted = [everything] if manifest.global_segments else groups
    blend = None if manifest.blend is None else Blend.decode(manifest.blend)
    return PoolSummary(
        tokenizer=manifest.tokenizer,
        created_at=manifest.created_at.isoformat(timespec="seconds"),
        provenance=sorted({info.provenance for info in manifest.segments.values()}),
        num_groups=len(groups),
        groups_draft=bool(groups) and (blend is None or blend.asks_groups),
        num_documents=sum(group.num_documents for group in counted),
        num_tokens=sum(group.num_tokens for group in counted),
        num_segments=len(manifest.segments),
        num_bytes=sum(info.num_bytes for info in manifest.segments.values()),
        has_global_segment=bool(manifest.global_segments),
        has_assignments=manifest.assignments is not None,
        routers=[
            RouterSummary(
                kind=router.kind,
                num_groups=len(router.groups),
                num_items=len(router.item_hashes),
                num_attribute_values=len(router.attribute_hashes),
            )
            for router in routers
        ],
        num_pivots=None if manifest.pivots is None else len(decode(manifest.pivots)),
        biggest_groups=sorted(groups, key=lambda group: (-group.num_tokens, group.name))[:num_biggest],
    )


def summarize_group(manifest: Manifest, name: str) -> GroupSummary:
    """Sum up one group of a manifest."""
    return _group(manifest, name, manifest.groups[name])


def _group(manifest: Manifest, name: str, segments: list[str]) -> GroupSummary:
    infos = [manifest.segments[segment] for segment in segments]
    return GroupSummary(
        name=name,
        num_documents=sum(info.num_documents for info in infos),
        num_tokens=sum(info.num_tokens for info in infos),
    )
