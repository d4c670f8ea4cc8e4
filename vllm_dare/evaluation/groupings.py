"""Ways of grouping a corpus: as its documents say, or as assignment files do."""

from collections.abc import Sequence
from pathlib import Path

from vllm_dare.errors import DareError
from vllm_dare.evaluation.corpus import Corpus
from vllm_dare.evaluation.study import Scheme
from vllm_dare.pool.group_inputs import read_groups


def own_scheme(corpus: Corpus) -> Scheme:
    """The groups that the documents name."""
    return Scheme(
        "groups of the documents", {i: t.group for i, t in corpus.texts.items() if t.group is not None}
    )


def read_schemes(files: Sequence[Path], about: str) -> list[Scheme]:
    """A scheme for each assignment file, or directory that `vllm-dare group` wrote, named after it.

    Args:
        files: see `read_groups`.
        about: a name with "users" or "items" in it, which says what the documents are about where a file has
            both, such as that of the split's list.

    Raises:
        DareError: a file cannot be used, two have one name, or it is not clear whose groups are meant.
    """
    schemes = [_read(file, about) for file in files]
    if len({scheme.name for scheme in schemes}) < len(schemes):
        raise DareError(
            "Two files of --assignments have the same name; rename one, so that tables can tell them apart."
        )
    return schemes


def _read(file: Path, about: str) -> Scheme:
    tables: dict[str, dict[str, str]] = {}
    for kind, entity, group in read_groups([file]):
        tables.setdefault(kind, {})[entity] = group
    fitting = [kind for kind in tables if f"{kind}s" in about] or list(tables)
    if len(fitting) != 1:
        raise DareError(
            f"{file} assigns {' and '.join(f'{kind}s' for kind in tables) or 'nobody'}, and nothing says "
            "which the documents are about; give a file of either users or items."
        )
    return Scheme(file.name.split(".")[0], tables[fitting[0]])
