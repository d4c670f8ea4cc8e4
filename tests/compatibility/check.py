"""Hold the ledger against a source: what is where, what is missing, and what differs between two sources."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.compatibility.ledger import Seam
from tests.compatibility.names import Found, Function, Names, call, parameters, strings
from tests.compatibility.source import Source

Status = Literal["ok", "moved", "differs", "changed", "missing"]
BROKEN: tuple[Status, ...] = ("changed", "missing")


@dataclass(frozen=True)
class Finding:
    """What a source has of one part of a seam.

    Attributes:
        seam, part: what was looked for; part is "" for the seam itself.
        place: ``path:line``; "" if it is missing.
        declaration: what is there, in one line of source.
        fault: why it does not serve, "" if it does.
    """

    seam: Seam
    part: str
    place: str = ""
    declaration: str = ""
    fault: str = ""

    @property
    def name(self) -> str:
        """What reports call it: the upstream name, with what is looked for in it."""
        signs = {"has": ".", "calls": " calls ", "says": " says ", "takes": "", "matches": "", "exists": ""}
        return f"{self.seam.where}{signs[self.seam.kind]}{self.part}"

    @property
    def status(self) -> Status:
        if not self.fault:
            return "ok"
        return "changed" if self.place else "missing"


def check(source: Source, seams: Sequence[Seam]) -> list[Finding]:
    """What the source has of every part of every seam, in order: as many as in any other source."""
    names = Names(source)
    return [finding for seam in seams for finding in _check(names, source, seam)]


def compare(before: Finding, now: Finding) -> Status:
    """How a finding stands to that in another source: ``differs`` if nothing relies on the difference."""
    if now.fault:
        return now.status
    if now.declaration != before.declaration:
        return "differs"
    return "ok" if now.place == before.place else "moved"


def _check(names: Names, source: Source, seam: Seam) -> Iterator[Finding]:
    module, _, qualname = seam.where.partition(":")
    found = names.find(module, qualname) if qualname else _module(source, module)
    if found is None and seam.kind == "exists":
        found = _module(source, f"{module}.{qualname}")
    if found is None:
        for part in seam.parts if seam.kind in ("has", "calls", "says") else ("",):
            yield Finding(seam, part, fault=f"{seam.where} is not there")
    elif seam.kind == "exists":
        yield Finding(seam, "", found.place, found.declaration)
    elif seam.kind in ("takes", "matches"):
        yield _signature(seam, found)
    else:
        look = {"has": _member, "calls": _call, "says": _string}[seam.kind]
        for part in seam.parts:
            yield look(names, seam, part, found)


def _module(source: Source, module: str) -> Found | None:
    text = source.text(module)
    return None if text is None else Found(text[0], 1, ast.parse(text[1]), module)


def _signature(seam: Seam, found: Found) -> Finding:
    fault = ""
    if not isinstance(found.node, Function):
        fault = "it is no function any more"
    else:
        taken = parameters(found.node)
        gone = [name for name in seam.parts if name not in taken]
        if gone:
            fault = f"it no longer takes {', '.join(gone)}"
        elif seam.kind == "matches" and taken != list(seam.parts):
            fault = f"it takes ({', '.join(taken)}), not ({', '.join(seam.parts)})"
    return Finding(seam, "", found.place, found.declaration, fault)


def _member(names: Names, seam: Seam, part: str, found: Found) -> Finding:
    if not isinstance(found.node, ast.ClassDef):
        return Finding(seam, part, found.place, found.declaration, "it is no class any more")
    member = names.members(found).get(part)
    if member is None:
        return Finding(seam, part, found.place, found.declaration, f"it no longer has {part}")
    return Finding(seam, part, member.place, member.declaration)


def _call(_names: Names, seam: Seam, part: str, found: Found) -> Finding:
    made = call(found.node, part)
    if made is None:
        return Finding(seam, part, found.place, fault=f"it no longer calls {part}")
    return Finding(seam, part, f"{found.path}:{made.lineno}", ast.unparse(made))


def _string(_names: Names, seam: Seam, part: str, found: Found) -> Finding:
    line = strings(found.node).get(part)
    if line is None:
        return Finding(seam, part, found.place, fault=f"it no longer says {part}")
    return Finding(seam, part, f"{found.path}:{line}", part)
