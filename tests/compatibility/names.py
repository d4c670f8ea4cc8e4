"""Find names in source text: what a module defines or hands on, what a class has, what a function does."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tests.compatibility.source import Source

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Found:
    """A name in a source.

    Attributes:
        path, line: where it is; path is relative to the directory that holds ``vllm``.
        node: what defines it.
        module: the module of that file, in which the node's own names are to be looked up.
    """

    path: str
    line: int
    node: ast.AST
    module: str

    @property
    def place(self) -> str:
        return f"{self.path}:{self.line}"

    @property
    def declaration(self) -> str:
        """The signature of a function, the bases of a class, else the statement; nothing for a module."""
        node = self.node
        if isinstance(node, ast.Module):
            return ""
        if isinstance(node, Function):
            return f"({ast.unparse(node.args)})"
        if isinstance(node, ast.ClassDef):
            return f"class {node.name}({', '.join(map(ast.unparse, node.bases))})"
        return ast.unparse(node)


class Names:
    """Looks names up in one source; every module is parsed once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._parsed = cache(self._parse)
        self._members = cache(self._members_of)

    def find(self, module: str, qualname: str) -> Found | None:
        """What ``module`` calls ``qualname`` (``Class.method``, ``function``), wherever it is defined."""
        name, *path = qualname.split(".")
        found = self._top(module, name)
        for part in path:
            if found is None or not isinstance(found.node, ast.ClassDef):
                return None
            found = self.members(found).get(part)
        return found

    def members(self, found: Found) -> dict[str, Found]:
        """Methods, fields, and attributes that methods set, of a class and of its bases in the source."""
        return self._members(found)

    def _members_of(self, found: Found) -> dict[str, Found]:
        assert isinstance(found.node, ast.ClassDef)
        members: dict[str, Found] = {}
        for base in reversed(found.node.bases):
            plain = base.value if isinstance(base, ast.Subscript) else base  # Generic[T]
            above = self._top(found.module, plain.id) if isinstance(plain, ast.Name) else None
            if above is not None and isinstance(above.node, ast.ClassDef):
                members |= self.members(above)
        own: dict[str, Found] = {}
        for name, node in _members(found.node):
            own.setdefault(name, Found(found.path, node.lineno, node, found.module))
        return members | own

    def _parse(self, module: str) -> tuple[str, ast.Module] | None:
        found = self._source.text(module)
        return None if found is None else (found[0], ast.parse(found[1]))

    def _top(self, module: str, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Found | None:
        parsed = self._parsed(module)
        if parsed is None or (module, name) in seen:
            return None
        path, tree = parsed
        seen |= {(module, name)}
        for node in _statements(tree):
            if isinstance(node, ast.ImportFrom):
                found = self._imported(module, path, node, name, seen)
            elif name in _bound(node):
                found = Found(path, node.lineno, node, module)
            else:
                found = self._lazy(module, node, name, seen)
            if found is not None:
                return found
        return None

    def _imported(
        self, module: str, path: str, node: ast.ImportFrom, name: str, seen: frozenset[tuple[str, str]]
    ) -> Found | None:
        alias = next((alias for alias in node.names if (alias.asname or alias.name) == name), None)
        if alias is None:
            return None
        package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
        above = package.rsplit(".", node.level - 1)[0] if node.level else ""
        origin = ".".join(part for part in (above, node.module) if part)
        found = self._top(origin, alias.name, seen)
        if found is None and self._source.text(f"{origin}.{alias.name}") is not None:
            return Found(path, node.lineno, node, module)  # a module
        return found

    def _lazy(self, module: str, node: ast.stmt, name: str, seen: frozenset[tuple[str, str]]) -> Found | None:
        """A name of a table {name: ".module:name"}, from which the package's ``__getattr__`` imports."""
        value = node.value if isinstance(node, ast.Assign) else None
        for key, place in zip(value.keys, value.values, strict=True) if isinstance(value, ast.Dict) else ():
            if isinstance(key, ast.Constant) and key.value == name and isinstance(place, ast.Constant):
                origin, colon, original = str(place.value).partition(":")
                if colon:
                    full = f"{module}{origin}" if origin.startswith(".") else origin
                    return self._top(full, original, seen)
        return None


def parameters(node: ast.AST) -> list[str]:
    """The names that a function takes; those behind ``*`` and ``**`` are not names that a caller can use."""
    assert isinstance(node, Function)
    arguments = node.args
    return [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def call(node: ast.AST, text: str) -> ast.Call | None:
    """The call in a node that is written so: ``f(a, b=c)``, or ``f(..., b=c)`` with any others beside."""
    wanted = ast.parse(text, mode="eval").body
    assert isinstance(wanted, ast.Call)
    (places, named) = _arguments(wanted)
    for found in ast.walk(node):
        if not isinstance(found, ast.Call) or ast.unparse(found.func) != ast.unparse(wanted.func):
            continue
        if _arguments(found) == (places, named) or (places == ["..."] and named <= _arguments(found)[1]):
            return found
    return None


def strings(node: ast.AST) -> dict[str, int]:
    """Every string in a node and its first line."""
    found: dict[str, int] = {}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            found.setdefault(inner.value, inner.lineno)
    return found


def _arguments(node: ast.Call) -> tuple[list[str], set[tuple[str | None, str]]]:
    named = {(keyword.arg, ast.unparse(keyword.value)) for keyword in node.keywords}
    return [ast.unparse(argument) for argument in node.args], named


def _statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, those inside of ``if`` and ``try`` included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.stmt):
            yield node
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _statements(node)


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | Function):
        return [node.name]
    return [target.id for target in targets(node) if isinstance(target, ast.Name)]


def _members(node: ast.ClassDef) -> Iterator[tuple[str, ast.stmt]]:
    """Of a class body: names bound in it, then what its methods set on ``self``, ``__init__`` first."""
    for statement in node.body:
        for name in _bound(statement):
            yield name, statement
    methods = [method for method in node.body if isinstance(method, Function)]
    for method in sorted(methods, key=lambda method: method.name != "__init__"):
        for inner in ast.walk(method):
            for target in targets(inner):
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                    assert isinstance(inner, ast.stmt)
                    yield target.attr, inner


def targets(node: ast.AST) -> list[ast.expr]:
    """What a statement assigns to, each by itself; nothing if it assigns nothing."""
    found: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        found = node.targets
    elif isinstance(node, ast.AnnAssign):
        found = [node.target]
    return [part for target in found for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
