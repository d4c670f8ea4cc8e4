"""Feed rows to a vLLM engine and hand each finished one back at once."""

import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from vllm.exceptions import VLLMClientError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError

from vllm_dare.errors import DareError, RequestError
from vllm_dare.generation.prompts import PromptRow, id_key
from vllm_dare.generation.settings import SamplingSettings
from vllm_dare.generation.watch import EngineStoppedError
from vllm_dare.request import ANY_ENGINE, RequestOptions
from vllm_dare.routing.router import Router

_WAITING_PER_SEAT = 4  # so many rows wait for each seat in the batch: the queue never runs dry
_FEED = 64  # rows tokenised between two steps, so that finished rows are not held up
_HOPELESS = 100  # as many first rows that all fail say that the settings are wrong, not the rows


class Runner:
    """Drives one ``vllm.LLM``.

    Args:
        llm: a started engine that nothing else feeds.
        sampling: how tokens are chosen.
        stopped: asked before each step; once true, unfinished rows are dropped and no more come.
        window: so many rows are with the engine at a time; None keeps its queue from running dry.
        router: says which group an output row belongs to whose prompt names none; None if nothing does.
    """

    def __init__(
        self,
        llm: Any,
        sampling: SamplingSettings,
        stopped: Callable[[], bool],
        window: int | None = None,
        router: Router | None = None,
    ) -> None:
        self._llm = llm
        self._sampling = sampling
        self._stopped = stopped
        self._router = router
        self._pending: dict[str, PromptRow] = {}
        self._finished = self._failed = 0
        seats = llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        self._window = seats * (1 + _WAITING_PER_SEAT) if window is None else window

    @property
    def is_busy(self) -> bool:
        """Whether the engine has rows that are not finished."""
        return bool(self._pending)

    @property
    def room(self) -> int:
        """How many rows to enqueue before the next step."""
        return min(_FEED, self._window - len(self._pending))

    def run(self, rows: Iterator[PromptRow]) -> Iterator[dict[str, Any]]:
        """Yield an output row for each of ``rows``, in the order in which they finish.

        Raises:
            EngineStoppedError: the engine died.
            DareError: the first hundred rows all failed.
        """
        more = True
        while (more or self._pending) and not self._stopped():
            room = self.room
            fed = list(islice(rows, room))
            more = len(fed) == room
            for row in fed:
                yield from self.enqueue(row)
            if self._pending:
                yield from self.step()

    def enqueue(self, row: PromptRow) -> Iterator[dict[str, Any]]:
        """Give a row to the engine; a row that the engine refuses comes back as an error."""
        return self._watched(self._enqueue(row))

    def step(self) -> Iterator[dict[str, Any]]:
        """Run the engine for one step, and hand back the rows that finish with it."""
        return self._watched(self._step())

    def _enqueue(self, row: PromptRow) -> Iterator[dict[str, Any]]:
        try:
            (request_id,) = self._request(row)
        except EngineDeadError:
            raise EngineStoppedError from None
        except Exception as error:  # whatever a chat template or an image's server comes up with
            yield _error_row(row, _reason(row, error))
        else:
            # vLLM appends a random suffix to tell a reused id apart; outputs carry the id without it
            self._pending[request_id.rsplit("-", 1)[0]] = row

    def _request(self, row: PromptRow) -> list[str]:
        params = self._params(row)
        if isinstance(row.prompt, str):
            return list(self._llm.enqueue([row.prompt], params, use_tqdm=False))
        return list(self._llm.enqueue_chat([row.prompt], params, use_tqdm=False))

    def _step(self) -> Iterator[dict[str, Any]]:
        try:
            outputs = self._llm.llm_engine.step()
        except EngineDeadError:
            if self._stopped():  # Ctrl-C on a terminal reaches the engine's processes too
                return
            raise EngineStoppedError from None
        for output in outputs:
            if output.finished:
                row = self._pending.pop(output.request_id)
                yield _output_row(row, output, _subject(row, self._router))

    def _watched(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            yield row
            self._finished += 1
            self._failed += row["finish_reason"] == "error"
            if self._failed == self._finished == _HOPELESS:
                raise DareError(f"The first {_HOPELESS} rows all failed, the last with: {row['error']}")

    def _params(self, row: PromptRow) -> SamplingParams:
        RequestOptions.parse(row.metadata, ANY_ENGINE)
        sampling = self._sampling
        return SamplingParams(
            max_tokens=_max_tokens(row, sampling.max_tokens),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=None if sampling.seed is None else _row_seed(sampling.seed, row),
            extra_args=dict(row.metadata) or None,
        )


def _output_row(row: PromptRow, output: Any, subject: dict[str, str]) -> dict[str, Any]:
    completion = output.outputs[0]
    return {
        "id": row.id,
        **subject,
        "text": completion.text,
        "prompt_tokens": len(output.prompt_token_ids or ()),
        "completion_tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "token_ids": list(completion.token_ids),
        **_verification(completion),
    }


def _verification(completion: Any) -> dict[str, Any]:
    """What relaxing did for the row, see `vllm_dare.verification.meters.Meters`; nothing if strict."""
    meters = getattr(completion.spec_decode_metrics, "dare", None)
    return {} if meters is None else {"verification": meters}


def _subject(row: PromptRow, router: Router | None) -> dict[str, str]:
    """Whom the row is about and the group, so that the output can be indexed as pool documents as it is.

    Of a user and an item, the user counts, as in what an engine learns: a document is about one of them.
    """
    query = RequestOptions.parse(row.metadata, ANY_ENGINE).query
    user, item = query.user, query.item if query.user is None else None
    group = query.group if router is None else router.route(query).group
    named = {"user": user, "item": item, "group": group}
    return {name: value for name, value in named.items() if value is not None}


def _max_tokens(row: PromptRow, default: int) -> int:
    if row.max_tokens is None:
        return default
    if not isinstance(row.max_tokens, int) or isinstance(row.max_tokens, bool) or row.max_tokens < 1:
        raise RequestError("max_tokens", f"max_tokens must be a whole number from 1, not {row.max_tokens!r}.")
    return row.max_tokens


def _row_seed(seed: int, row: PromptRow) -> int:
    """A seed of the row's own, so that its text does not hang on the rows around it."""
    return (seed + zlib.crc32(id_key(row.id).encode())) % 2**32


def _reason(row: PromptRow, error: Exception) -> str:
    """The error's own sentence, or what kind it is where that is not one, such as a KeyError's bare key."""
    if isinstance(error, ValueError | OSError | VLLMClientError) and str(error):
        return str(error)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return text if isinstance(row.prompt, str) else f"The messages are not valid: {text}"


def _error_row(row: PromptRow, reason: str) -> dict[str, Any]:
    return {
        "id": row.id,
        "text": "",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "finish_reason": "error",
        "token_ids": [],
        "error": reason,
    }
