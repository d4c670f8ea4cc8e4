"""One request's acceptance rule, and how far the request has come under it."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from vllm_dare.pool.pivots import BEGIN, CONTEXT
from vllm_dare.verification.meters import Meters
from vllm_dare.verification.policy import GUARDED_KINDS, LINE_END, QUOTE, TURN, rule_row
from vllm_dare.verification.rule import VerificationConfig


class RequestRule:
    """The rule of one request.

    Args:
        verification: what the operator and the request say.
        stop_token_ids: the tokens that end the request.
        never_relax: the token ids that `VerificationConfig.never_relax` means.
        output: returns the token ids that the request has written so far.

    Attributes:
        relaxes: whether it may keep a token that strict verification would not.
        row: float64[NUM_RULE_COLUMNS], see `rule_row`.
        guard_ids: int64[any], the ids that it never relaxes, sorted.
        meters: what relaxing did for this request so far.
    """

    def __init__(
        self,
        verification: VerificationConfig,
        stop_token_ids: Sequence[int] = (),
        never_relax: Sequence[int] = (),
        output: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        self.relaxes = verification.relaxes
        self.row = rule_row(verification)
        guarded = {*never_relax, *(stop_token_ids if verification.guard_stop_tokens else ())}
        self.guard_ids: npt.NDArray[np.int64] = np.array(sorted(guarded), dtype=np.int64)
        self.meters = Meters()
        self._output = output
        self._read = 0  # so many output tokens are known to `_quoted`
        self._quoted = 0

    def written(self) -> int:
        """How many tokens the request has written."""
        return len(self._output())

    def recent(self) -> npt.NDArray[np.int64]:
        """int64[CONTEXT], the last tokens that the request has written, `BEGIN` before its first."""
        last = list(self._output()[-CONTEXT:])
        return np.array([BEGIN] * (CONTEXT - len(last)) + last, dtype=np.int64)

    def quoted(self, kinds: npt.NDArray[np.uint8]) -> int:
        """1 if what the request has written so far leaves a quotation open and its rule asks, else 0."""
        if not int(self.row[GUARDED_KINDS]) & QUOTE:
            return 0
        output = self._output()
        if len(output) < self._read:  # vLLM has taken tokens back
            self._read = self._quoted = 0
        for token in output[self._read :]:
            if kinds[token] & LINE_END:
                self._quoted = 0
            elif kinds[token] & TURN:
                self._quoted ^= 1
        self._read = len(output)
        return self._quoted
