"""What a rule never relaxes: tokens, told from their text, and places, told by the pool."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from vllm_dare.verification.policy import DIGIT, JSON, LINE_END, QUOTE, TURN
from vllm_dare.verification.rule import VerificationConfig

_JSON_MARKS = frozenset('{}[]":,')
_QUOTATION_MARKS = '"“”„«»'
_MOST_LISTS = 64  # of `never_relax` that are remembered; requests make up their own


class TokenGuards:
    """The text of every token, read when a rule first asks for it (a second for 100,000 tokens).

    Args:
        vocab_size: of the model.
        texts: returns the text of every token, in order of their ids; there may be fewer than vocab_size.
        encode: the token ids that a string is written with.
        pivots: see `vllm_dare.pool.pivots.find_pivots`; None where no pool knows them.

    Attributes:
        kinds: uint8[vocab], what each token is, see `vllm_dare.verification.policy`; empty until a rule
            with ``protect`` is prepared.
        pivots: uint64[any], of the last pool that knew them; empty if none did.
    """

    def __init__(
        self,
        vocab_size: int,
        texts: Callable[[], Sequence[str]],
        encode: Callable[[str], Sequence[int]],
        pivots: npt.NDArray[np.uint64] | None = None,
    ) -> None:
        self._vocab_size, self._read, self._encode = vocab_size, texts, encode
        self._texts: Sequence[str] | None = None
        self._ids: dict[tuple[int | str, ...], tuple[int, ...]] = {}
        self.kinds: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        self.pivots: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self.learn_wording(pivots)

    def learn_wording(self, pivots: npt.NDArray[np.uint64] | None) -> None:
        """From now on, the pool that drafts has these pivots; None if it does not know them.

        Then new requests that ask for wording only are strict, see `applicable`, and those that run keep the
        pivots known so far: without any, they would relax everywhere.
        """
        self._knows_wording = pivots is not None
        if pivots is not None:
            self.pivots = pivots

    def prepare(self, rule: VerificationConfig) -> tuple[int, ...]:
        """Make `kinds` known if the rule needs them; returns the token ids that its ``never_relax`` means."""
        if rule.protect and not len(self.kinds):
            self.kinds = self._kinds_of_all()
        tokens = self._ids.pop(rule.never_relax, None)
        if tokens is None:
            tokens = self._tokens_of(rule.never_relax)
            if len(self._ids) >= _MOST_LISTS:
                del self._ids[next(iter(self._ids))]
        self._ids[rule.never_relax] = tokens  # the most recently used come last
        return tokens

    def applicable(self, rule: VerificationConfig) -> VerificationConfig:
        """The rule, or, where it asks for wording only and nobody knows what is wording, a strict one."""
        if rule.relaxes and rule.wording_only and not self._knows_wording:
            return rule.model_copy(update={"mode": "strict"})
        return rule

    def _all_texts(self) -> Sequence[str]:
        if self._texts is None:
            self._texts = self._read()
        return self._texts

    def _kinds_of_all(self) -> npt.NDArray[np.uint8]:
        kinds = np.zeros(self._vocab_size, np.uint8)
        for token, text in enumerate(self._all_texts()):
            kinds[token] = _kinds_of(text)
        return kinds

    def _tokens_of(self, entries: Sequence[int | str]) -> tuple[int, ...]:
        tokens = {entry for entry in entries if isinstance(entry, int)}
        for string in (entry for entry in entries if isinstance(entry, str)):
            tokens.update(self._encode(string), self._encode(f" {string}"))
            tokens.update(token for token, text in enumerate(self._all_texts()) if string in text)
        return tuple(sorted(tokens))


def _kinds_of(text: str) -> int:
    kinds = 0
    if any(character.isdigit() for character in text):
        kinds |= DIGIT
    if not _JSON_MARKS.isdisjoint(text):
        kinds |= JSON
    marks = sum(text.count(mark) for mark in _QUOTATION_MARKS)
    if marks:
        kinds |= QUOTE | (TURN if marks % 2 else 0)
    if "\n" in text:
        kinds |= LINE_END
    return kinds
