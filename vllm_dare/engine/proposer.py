"""DareProposer: vLLM's `custom_class` proposer over the retrieval pool."""

import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import numpy.typing as npt
from vllm.config import VllmConfig
from vllm.logger import init_logger

from vllm_dare.config import DareConfig
from vllm_dare.drafting.budget import kind_of
from vllm_dare.drafting.drafter import Batch, Drafter, Memory, Sources
from vllm_dare.engine import metrics_endpoint, plugin, request_meters, spans
from vllm_dare.engine.draft_metrics import DraftMetrics, compile_metrics
from vllm_dare.engine.learning import Learner, Written
from vllm_dare.engine.metrics_file import OTHER_GROUPS, MetricsFile
from vllm_dare.engine.pacing import DraftPacing, compile_pacing
from vllm_dare.engine.shared_pool import SharedPool
from vllm_dare.errors import RequestError
from vllm_dare.pool.assignments import entity_hash
from vllm_dare.pool.live_orders import Unfollowed
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.watch import PoolWatch
from vllm_dare.request import RequestOptions
from vllm_dare.routing.query import Query
from vllm_dare.verification.request_rule import RequestRule
from vllm_dare.verification.sampler import RelaxedRejectionSampler
from vllm_dare.verification.token_guards import TokenGuards

logger = init_logger(f"vllm.{__name__}")  # below "vllm", the only logger that vLLM gives a handler


@dataclass(eq=False)
class _RequestState:
    """What is worked out once per request; `request` tells a reused id from the request it was made for."""

    request: Any
    sources: Sources
    rule: RequestRule
    # Not 0 for a relaxed request: its drafts are drawn, see `vllm_dare.drafting.chain.draft_chain`.
    seed: int
    # What look-ups carry from one step to the next.
    memory: Memory
    # Output tokens after which nothing can be accepted any more, and those before which the text may not end.
    max_tokens: int
    min_tokens: int
    # The group that drafts for it, and that learns what it writes; None without one.
    group: str | None
    # The label that metrics count it by, see `DareProposer._label`.
    label: str | None
    # Of the user or item that it names, see `vllm_dare.pool.segment.PoolDocument`.
    key: int
    # For the draft budget, see `vllm_dare.drafting.budget`.
    kind: int
    sends_whole_chains: bool
    # Not where the text of its user or group was dropped while it was there.
    is_learned: bool = True


@dataclass(frozen=True, eq=False)
class _Batch:
    """The requests of a step as arrays; most steps have the same ones as the step before.

    Attributes:
        rows: their rows in the batch; states: what is known of each.
        drafted: the same for the drafter.
        kinds: int64[requests]; whole: bool[requests], see `_RequestState`.
    """

    rows: list[int]
    states: list[_RequestState]
    drafted: Batch
    kinds: npt.NDArray[np.int64]
    whole: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, rows: list[int], states: list[_RequestState], drafter: Drafter) -> "_Batch":
        return cls(
            rows,
            states,
            drafter.batch(
                rows,
                [state.sources for state in states],
                [state.seed for state in states],
                memories=[state.memory for state in states],
            ),
            kinds=np.array([state.kind for state in states], dtype=np.int64),
            whole=np.array([state.sends_whole_chains for state in states]),
        )


class DareProposer:
    """Drafts for vLLM's running batch; built by vLLM inside the worker.

    Start it with ``speculative_config={"method": "custom_class", "model": "vllm_dare.DareProposer",
    "num_speculative_tokens": K}``; its settings come from ``additional_config["dare"]``, see `DareConfig`.

    Attributes:
        errors: how many look-ups have failed since the start; each cost drafts, never a request.

    Raises:
        DareError: a setting or pool that cannot work (the front end has normally said so before).
    """

    def __init__(self, vllm_config: VllmConfig) -> None:
        from vllm.distributed.parallel_state import get_tp_group

        plugin.prepare_worker()
        # The scheduler takes the drafts of the first tensor-parallel rank; the others need not look.
        self._drafts_here = get_tp_group().rank_in_group == 0
        self.config = DareConfig.from_additional_config(vllm_config.additional_config)
        self.max_drafts: int = vllm_config.speculative_config.num_speculative_tokens
        self._shared = SharedPool.of(self.config, on_outage=self._count_outage)
        directory = self._shared.mirror.pool if self._shared is not None else self.config.pool
        pool = RetrievalPool.open(directory) if directory is not None else None
        self._guards = token_guards(vllm_config.model_config, pool)
        self._guards.prepare(self.config.verification)
        if pool is not None and not self._drafts_here:
            pool.close()  # a rank that takes up no newer version would keep this one's files from removal
            pool = None
        self._learner = self._make_learner(pool)
        live = self._learner.live if self._learner is not None else None
        self.drafter = Drafter(pool, self.max_drafts, vllm_config.model_config.get_vocab_size(), live=live)
        self._watch = (
            PoolWatch(
                pool,
                verify=self.config.verify_pool and self._shared is None,
                make_room=self.drafter.make_room,
                on_failure=self._refused,
            )
            if pool is not None
            else None
        )
        self._told_of_wording = False
        self._makes_spans = spans.are_made(vllm_config)
        self._returns_meters = self._makes_spans or request_meters.are_returned(vllm_config)
        self.errors = 0
        self._pacing = DraftPacing() if self.config.draft_budget == "auto" else None
        self._metrics_file: MetricsFile | None = None
        self._metrics: DraftMetrics | None = None
        self._runner: Any = None
        self._states: dict[str, _RequestState] = {}
        self._batch: _Batch | None = None
        self._renews_sources = False
        # Held while drafting: the background looks for finished requests and takes up pools while vLLM idles.
        self._lock = threading.RLock()

    def load_model(self, *_args: Any, **_kwargs: Any) -> None:
        """vLLM's moment for loading: compile the kernels, so that no request waits for it."""
        self.drafter.compile()
        if self._pacing is not None:
            compile_pacing()
        compile_metrics()

    def bind(self, runner: Any) -> None:
        """Get to know the model runner: its requests say which group drafts, its sampler verifies."""
        self._runner = runner
        if self._drafts_here:
            self._start_metrics(runner.parallel_config.data_parallel_index)
        if self._watch is not None:
            self._watch.start(self._serve_while_idle)
        if self._shared is not None and self._drafts_here:
            self._shared.start()
        if self._learner is not None:
            self._learner.start(self)
            Finalize(None, self.close, exitpriority=0)  # for an engine that is not shut down in order
        runner.rejection_sampler = RelaxedRejectionSampler(
            runner.rejection_sampler, self.rules_of_batch, self._guards
        )

    def close(self) -> None:
        """The engine is about to end: write down what it has learned, cut short as some texts may be."""
        self._log_meters()
        if self._watch is not None:
            self._watch.close()
        if self._learner is not None:
            with self._lock:
                self._learn(list(self._states.values()))
                self._states.clear()
            self._learner.close()
        if self._shared is not None:
            self._shared.close()
        if self._metrics_file is not None:
            self._metrics_file.remove()

    def _make_learner(self, pool: RetrievalPool | None) -> Learner | None:
        if self.config.live is None or pool is None:
            return None
        if self._shared is None:
            return Learner(self.config.live, pool)
        return Learner(self.config.live, pool, partial(self._shared.pass_on, pool.tokenizer))

    def _start_metrics(self, engine: int) -> None:
        directory = metrics_endpoint.directory()
        if directory is None:
            return
        try:
            file = MetricsFile.create(directory, engine)
        except OSError as error:
            logger.warning("DARE: no metrics, as %s cannot be written (%s).", directory, error.strerror)
            return
        self._metrics_file, self._metrics = file, DraftMetrics(file)
        self._show_pool()

    def _show_pool(self) -> None:
        file, pool = self._metrics_file, self.drafter.pool
        if file is not None and pool is not None:
            file.set("pool_tokens", pool.num_tokens)
            file.set("pool_segments", len(pool.manifest.segments))
            file.set("pool_bytes", pool.num_bytes)
            file.set("pool_groups", len(pool.groups))
            file.set("pool_created_timestamp_seconds", pool.manifest.created_at.timestamp())

    def _log_meters(self) -> None:
        sampler = getattr(self._runner, "rejection_sampler", None)
        if not self._drafts_here or not isinstance(sampler, RelaxedRejectionSampler):
            return  # every tensor-parallel rank decides alike, and one of them tells
        sampler.settle()
        if sampler.meters.exact or sampler.meters.relaxed:
            logger.info(
                "DARE: requests with a relaxed rule: %s",
                ", ".join(f"{name} {value:.6g}" for name, value in sampler.meters.as_dict().items()),
            )

    def end_learning(self) -> dict[str, Any] | None:
        """As `close`, and tell how learning went, see `Learner.outcome`; None where nothing is learned."""
        self.close()
        return self._learner.outcome() if self._learner is not None else None

    def rules_of_batch(self) -> Sequence[RequestRule]:
        """The acceptance rule of every request in the running batch, in batch order."""
        return [self._state(request_id).rule for request_id in self._runner.input_batch.req_ids]

    def report_meters(self, output: Any) -> None:
        """Put on the worker's output what relaxing did so far for the requests that may be over now.

        And, where vLLM makes spans, the group of each.
        """
        if not self._returns_meters:
            return
        self._runner.rejection_sampler.settle()
        found = ((request_id, self._states.get(request_id)) for request_id in output.req_ids)
        states = {request_id: state for request_id, state in found if state is not None}
        meters = {key: state.rule.meters.as_dict() for key, state in states.items() if state.rule.relaxes}
        if meters:
            setattr(output, request_meters.METERS, meters)
        if self._makes_spans:
            setattr(output, spans.GROUPS, {key: state.label for key, state in states.items()})

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: npt.NDArray[np.int32],
        token_ids_cpu: npt.NDArray[np.int32],
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Draft for every request of the batch.

        Args:
            sampled_token_ids: the tokens each request has just got; empty while its prompt is not done.
            num_tokens_no_spec: int32[max_num_seqs], length of each request's text, prompt and output.
            token_ids_cpu: int32[max_num_seqs, max_model_len], the texts.
            slot_mappings: not used.

        Returns:
            One list of at most `num_speculative_tokens` token ids per batch row, [] for none.
        """
        if self._drafts_here:
            try:
                with self._lock:
                    return self._propose(sampled_token_ids, num_tokens_no_spec, token_ids_cpu)
            except Exception as error:  # a failed look-up must cost speed, never a request
                self._count_error("draft", error)
        return [[] for _ in sampled_token_ids]

    def _propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: npt.NDArray[np.int32],
        token_ids_cpu: npt.NDArray[np.int32],
    ) -> list[list[int]]:
        began = time.perf_counter()
        proposals: list[list[int]] = [[] for _ in sampled_token_ids]
        rows = [row for row, sampled in enumerate(sampled_token_ids) if sampled]
        if not rows:
            return proposals
        request_ids = self._runner.input_batch.req_ids
        states = [self._state(request_ids[row]) for row in rows]
        batch = self._batch
        if batch is None or batch.rows != rows or batch.states != states:
            batch = self._batch = _Batch.of(rows, states, self.drafter)
        self._end_step(began, batch, sampled_token_ids)
        newer = self._watch.take() if self._watch is not None else None
        if newer is not None:
            self._serve(newer)
        if self._renews_sources:
            self._renew_sources()
            states = [self._state(request_ids[row]) for row in rows]
            batch = self._batch = _Batch.of(rows, states, self.drafter)
        if self._pacing is not None and self._pacing.rests(
            states, batch.kinds, batch.whole, time.perf_counter()
        ):
            if self._metrics is not None:
                self._metrics.rested()
            return proposals
        sizes = num_tokens_no_spec[batch.drafted.rows].astype(np.int64)
        # A step writes its accepted drafts and one token more.
        limits = np.minimum(_room(states), self._runner.max_model_len - sizes) - 1
        look_up_began = time.perf_counter()
        drafts = self.drafter.draft(token_ids_cpu, batch.drafted, sizes, limits)
        lengths, now = drafts.lengths, time.perf_counter()
        if self._pacing is not None:
            lengths = self._pacing.send(
                states, batch.kinds, drafts.survivals, lengths, batch.whole, now, now - look_up_began
            )
        if self._metrics is not None:
            labels = [state.label for state in states]
            self._metrics.sent(states, labels, drafts, lengths, now - look_up_began)
        for i, row in enumerate(rows):
            proposals[row] = drafts.tokens[i, : lengths[i]].tolist()
        return proposals

    def _end_step(self, at: float, batch: _Batch, sampled_token_ids: list[list[int]]) -> None:
        """Tell the draft budget and the metrics about the step that has just been sampled."""
        ends = self._runner.query_start_loc.np[: len(sampled_token_ids) + 1]
        scheduled = (ends[batch.drafted.rows + 1] - ends[batch.drafted.rows]).astype(np.int64)
        written = np.array([len(sampled_token_ids[row]) for row in batch.rows])
        if self._pacing is not None:
            self._pacing.step_ended(
                at, batch.states, batch.kinds, scheduled, written, len(sampled_token_ids), int(ends[-1])
            )
        if self._metrics is not None:
            self._metrics.verified(batch.states, scheduled, written)
            self._metrics.relaxed(self._runner.rejection_sampler.meters.relaxed)

    def _serve_while_idle(self) -> None:
        """Take up a newer version of the pool although no step comes; called in the background."""
        with self._lock:
            newer = self._watch.take() if self._watch is not None and not self._runner.requests else None
            if newer is not None:
                self._serve(newer)
                self._renew_sources()

    def _serve(self, pool: RetrievalPool) -> None:
        """Draft from a newer version of the pool; `_renew_sources` does the rest."""
        before = self.drafter.pool
        self.drafter.serve(pool)
        self._renews_sources = True
        if self._runner.parallel_config.tensor_parallel_size == 1:
            # Else every rank must relax alike, and each would learn of the new version at another step.
            self._guards.learn_wording(pool.pivots)
        if before is not None:
            before.close()
        if self._metrics_file is not None:
            self._metrics_file.add("pool_reloads")
        self._show_pool()
        logger.info(
            "DARE: drafting from a newer version of the pool %s (%d tokens in %d groups, built %s).",
            pool.directory,
            pool.num_tokens,
            len(pool.groups),
            pool.manifest.created_at.isoformat(timespec="seconds"),
        )

    def _renew_sources(self) -> None:
        """Draft for the requests that run from what is there now."""
        self._renews_sources = False
        for key, state in self._states.items():
            self._states[key] = self._with_sources(state)

    def _with_sources(self, state: _RequestState) -> _RequestState:
        """The same request, drafted for from the pool that is served now."""
        params = state.request.sampling_params
        group = self._group(self._options(params.extra_args if params is not None else None).query)
        sources = self._sources(group)
        return replace(state, sources=sources, memory=sources.memory(), group=group, label=self._label(group))

    def _count_outage(self) -> None:
        if self._metrics_file is not None:
            self._metrics_file.add("errors", label="store")

    def _refused(self, error: Exception) -> None:
        if self._metrics_file is not None:
            self._metrics_file.add("errors", label="reload")
        logger.error(
            "DARE: a newer version of the pool cannot be used, and the one before goes on drafting: %s", error
        )

    def _state(self, request_id: str) -> _RequestState:
        request = self._runner.requests[request_id]
        with self._lock:
            state = self._states.get(request_id)
            if state is None or state.request is not request:
                self._forget_finished()
                state = self._states[request_id] = self._resolve(request)
            return state

    def _resolve(self, request: Any) -> _RequestState:
        params = request.sampling_params
        options = self._options(params.extra_args if params is not None else None)
        stops = tuple(sorted(params.all_stop_token_ids)) if params is not None else ()
        max_tokens = params.max_tokens if params is not None else None
        verification = self._guards.applicable(options.verification)
        if verification is not options.verification and not self._told_of_wording:
            self._told_of_wording = True
            logger.warning(
                "DARE: a request asks for relaxing wording only, but the pool does not say what is wording "
                "(it was made without text, or by an older vllm-dare): such requests are verified strictly. "
                "Rebuild it with `vllm-dare pool build`."
            )
        rule = RequestRule(
            verification,
            stops,
            self._guards.prepare(verification),
            lambda: request.output_token_ids,
        )
        group = self._group(options.query)
        sources = self._sources(group)
        sampled = params is not None and params.temperature > 0
        return _RequestState(
            seed=_seed(request.prompt_token_ids) if rule.relaxes and verification.drawn_drafts else 0,
            request=request,
            sources=sources,
            memory=sources.memory(),
            rule=rule,
            max_tokens=max_tokens if max_tokens is not None else self._runner.max_model_len,
            min_tokens=params.min_tokens if params is not None else 0,
            group=group,
            label=self._label(group),
            key=_document_key(options.query),
            kind=kind_of(sampled, rule.relaxes),
            # With a seed, the text must not depend on the load.
            sends_whole_chains=(sampled or rule.relaxes) and params.seed is not None,
        )

    def _options(self, extra_args: dict[str, Any] | None) -> RequestOptions:
        try:
            return RequestOptions.parse(extra_args, self.config)
        except RequestError as error:
            # The front end refuses such requests; one that came past it is served with the defaults.
            self._count_error("request", error)
            return RequestOptions.parse(None, self.config)

    def _sources(self, group: str | None) -> Sources:
        """The segments of a request's group and the global ones; where a file has gone, the latter alone."""
        if self._shared is not None:
            self._shared.want(group, self.drafter.pool)
        for choice in (group, None):
            try:
                return self.drafter.sources(choice)
            except Exception as error:
                self._count_error("sources", error)
        return Sources.of()

    def _group(self, query: Query) -> str | None:
        pool = self.drafter.pool
        if query.group is not None or pool is None:
            return query.group
        try:
            return pool.router.route(query).group
        except Exception as error:
            self._count_error("sources", error)
            return None

    def _label(self, group: str | None) -> str | None:
        """The group itself only where the pool has text for it: clients may make up any names."""
        pool = self.drafter.pool
        return group if group is None or (pool is not None and group in pool.groups) else OTHER_GROUPS

    def gather(self) -> None:
        """Learn the last requests before an idle time, in which vLLM asks for no drafts."""
        with self._lock:
            self._forget_finished()
        if self._metrics_file is not None and self._learner is not None:
            self._metrics_file.set("live_tokens", self._learner.live.num_tokens)
            self._metrics_file.set("live_evicted_tokens", self._learner.num_evicted)

    def forget(self, unfollowed: Unfollowed) -> None:
        """Do not learn what requests write whose user's or group's text was dropped while they were there."""
        with self._lock:
            for state in self._states.values():
                if unfollowed.covers(state.group, state.key):
                    state.is_learned = False

    def renew(self) -> None:
        """Text that was learned has gone: draft for running requests from what is left."""
        with self._lock:
            self._renews_sources = True

    def _forget_finished(self) -> None:
        """Drop the states of requests that are gone, once what they wrote is learned."""
        requests = self._runner.requests
        gone = [key for key, state in self._states.items() if requests.get(key) is not state.request]
        self._learn([self._states.pop(key) for key in gone])

    def _learn(self, states: list[_RequestState]) -> None:
        if self._learner is not None:
            self._learner.learn(
                [
                    Written(state.request, state.group, state.rule.relaxes, state.max_tokens, state.key)
                    for state in states
                    if state.is_learned
                ]
            )

    def _count_error(self, kind: str, error: Exception) -> None:
        self.errors += 1
        if self._metrics_file is not None:
            self._metrics_file.add("errors", label=kind)
        if self.errors == 1:
            logger.error(
                "vllm-dare: drafting failed and goes on without drafts where it does (further ones are "
                "counted, not logged): %s: %s",
                type(error).__name__,
                error,
            )


def token_guards(model_config: Any, pool: RetrievalPool | None) -> TokenGuards:
    """The guards over the model's own tokenizer, which is read when a rule first asks for a token's text."""
    from vllm.tokenizers import cached_tokenizer_from_config

    def texts() -> Sequence[str]:
        tokenizer = cached_tokenizer_from_config(model_config)
        # one by one: not every tokenizer of vLLM's has batch_decode
        return [tokenizer.decode([token]) for token in range(len(tokenizer))]

    def encode(text: str) -> Sequence[int]:
        tokenizer = cached_tokenizer_from_config(model_config)
        tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return tokens

    pivots = pool.pivots if pool is not None else None
    return TokenGuards(model_config.get_vocab_size(), texts, encode, pivots)


def _room(states: Sequence[_RequestState]) -> npt.NDArray[np.int64]:
    """How many tokens a step may write, int64[requests].

    To a step that begins before `min_tokens` vLLM forbids stop tokens behind all drafts, too, where plain
    decoding may have got that far: no step goes beyond it.
    """
    room = np.empty(len(states), np.int64)
    for row, state in enumerate(states):
        written = len(state.request.output_token_ids)
        room[row] = (state.min_tokens if written < state.min_tokens else state.max_tokens) - written
    return room


def _document_key(query: Query) -> int:
    """By which the pool knows the text of the user or item that a request names; 0 if it names none."""
    if query.user is not None:
        return entity_hash("user", query.user)
    return 0 if query.item is None else entity_hash("item", query.item)


def _seed(prompt_token_ids: list[int] | None) -> int:
    """A seed that depends on the prompt alone, so that drafts stay a pure function of the request's text."""
    return zlib.crc32(np.array(prompt_token_ids or [], dtype=np.int32).tobytes()) + 1
