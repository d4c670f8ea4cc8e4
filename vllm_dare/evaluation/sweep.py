"""`vllm-dare evaluate --sweep`: the same prompts with several rules of verification, to be compared."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vllm_dare.config import DareConfig
from vllm_dare.errors import ConfigError, DareError, RequestError
from vllm_dare.generation.engine import check_model, check_pool
from vllm_dare.generation.ids import check_unique
from vllm_dare.generation.prompts import PromptRow, read_prompts
from vllm_dare.generation.settings import EngineSettings, SamplingSettings
from vllm_dare.pool.files import replace_text, sha256
from vllm_dare.request import RequestOptions

BASELINE, AGAIN = "plain", "plain again"
_CLEAN = frozenset((BASELINE, AGAIN))

Rows = Sequence[Mapping[str, Any]]
# Takes engine, settings, prompts, sampling, concurrency, and what to call for each setting that is done.
Measure = Callable[
    [EngineSettings, "Sequence[Setting]", Sequence[PromptRow], SamplingSettings, int, Any], None
]


@dataclass(frozen=True)
class Setting:
    """A rule of verification, as a request names it.

    Attributes:
        name: what the user calls it.
        keys: its keys in ``extra_args``; none for plain vLLM.
    """

    name: str
    keys: Mapping[str, Any]

    @property
    def is_plain(self) -> bool:
        """Whether it runs without drafts."""
        return self.name in _CLEAN

    @property
    def file_name(self) -> str:
        """Of its knowledge file."""
        return re.sub(r"[^\w.=-]+", "_", self.name) + ".jsonl"


@dataclass(frozen=True)
class Sweep:
    """What is generated.

    Attributes:
        prompts: the prompt file; its first ``limit`` rows are generated in each setting.
        engine: with the pool and the longest draft.
        sampling: for all settings.
        settings: the baseline first.
        concurrency: requests in flight.
        output: the directory of the knowledge files.
    """

    prompts: Path
    limit: int
    engine: EngineSettings
    sampling: SamplingSettings
    settings: Sequence[Setting]
    concurrency: int
    output: Path

    def knowledge_file(self, setting: Setting) -> Path:
        """Where the texts of a setting go."""
        return self.output / setting.file_name

    def figures_file(self, setting: Setting) -> Path:
        """Where its figures go; it is written last, and says that the texts are complete."""
        return self.output / (setting.file_name.removesuffix(".jsonl") + ".figures.json")

    def identity(self, setting: Setting) -> dict[str, Any]:
        """Everything that shapes the texts and figures of a setting, as JSON values."""
        engine = self.engine
        drafts = {} if setting.is_plain else {"pool": str(engine.pool), "draft_tokens": engine.draft_tokens}
        return {
            "model": engine.model,
            "prompts_sha256": sha256(self.prompts),
            "limit": self.limit,
            "concurrency": self.concurrency,
            "sampling": asdict(self.sampling),
            "max_model_len": engine.max_model_len,
            "dtype": engine.dtype,
            "engine_args": dict(engine.engine_args),
            "request_keys": dict(setting.keys),
            **drafts,
        }


def parse_settings(text: str) -> list[Setting]:
    """The settings of ``--settings``, after the baseline.

    Names are ``strict``, a preset of the relaxed rule, or ``plain`` for a second run without drafts, which
    says how much sampling alone changes. ``top_k=3,min_prob=0.05`` is one setting: bounds that stand one
    after the other belong together, and a semicolon parts two such settings.

    Raises:
        ConfigError: a setting does not exist, or is there twice.
    """
    settings = [Setting(BASELINE, {})]
    for part in text.split(";"):
        bounds: dict[str, Any] = {}
        for name in (piece.strip() for piece in part.split(",")):
            if "=" in name:
                bounds |= [_bound(name)]
                continue
            if bounds:
                settings.append(_custom(bounds))
                bounds = {}
            if name:
                settings.append(_named(name))
        if bounds:
            settings.append(_custom(bounds))
    if len(settings) < 2:
        raise ConfigError("--settings names no setting; give at least one, such as strict,careful,fast.")
    names = [setting.name for setting in settings]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--settings has {name} twice; leave out one of them.")
    return settings


def _named(name: str) -> Setting:
    if name == BASELINE:
        return Setting(AGAIN, {})
    if name == "strict":
        return _checked(Setting(name, {"dare_verification": "strict"}))
    return _checked(Setting(name, {"dare_verification": "relaxed", "dare_preset": name}))


def _custom(bounds: Mapping[str, Any]) -> Setting:
    keys = {f"dare_{name}": value for name, value in bounds.items()}
    name = ",".join(f"{name}={value}" for name, value in bounds.items())
    return _checked(Setting(name, {"dare_verification": "relaxed", **keys}))


def _bound(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    with suppress(ValueError):  # what is no number stays a text
        return name.strip(), json.loads(value)
    return name.strip(), value.strip()


def _checked(setting: Setting) -> Setting:
    try:
        RequestOptions.parse(setting.keys, DareConfig())
    except RequestError as error:
        raise ConfigError(f"--settings, {setting.name}: {error}") from None
    return setting


def check(sweep: Sweep) -> Sweep:
    """Find what cannot work before any engine starts.

    Returns:
        the sweep, its limit lowered to the rows that there are.

    Raises:
        DareError: see the message.
    """
    if "max_num_seqs" in sweep.engine.engine_args:
        raise DareError("--engine-args may not contain 'max_num_seqs': --concurrency sets it.")
    check_model(sweep.engine.model)
    if sweep.engine.pool is not None:
        check_pool(sweep.engine.pool, sweep.engine.model)
    rows, again = (read_prompts(sweep.prompts, sweep.limit) for _ in range(2))
    count = check_unique(rows, again, str(sweep.prompts))
    if not count:
        raise DareError(f"The prompt file {sweep.prompts} has no rows.")
    sweep = replace(sweep, limit=count)
    for setting in sweep.settings:
        _finished(sweep, setting)
    return sweep


def generate(sweep: Sweep, measure: Measure) -> dict[str, dict[str, Any]]:
    """Write the knowledge file of every setting that has none yet.

    Args:
        sweep: see `check`.
        measure: `sweep_engine.measure`, or a stand-in; called for each engine that has something to do.

    Returns:
        name to figures, see `sweep_engine.speed`, in the settings' order.
    """
    sweep.output.mkdir(parents=True, exist_ok=True)
    rows = list(read_prompts(sweep.prompts, sweep.limit))

    def keep(setting: Setting, texts: Rows, figures: Mapping[str, Any]) -> None:
        lines = "".join(json.dumps(dict(row)) + "\n" for row in texts)
        replace_text(sweep.knowledge_file(setting), lines)
        record = {"settings": sweep.identity(setting), "figures": dict(figures)}
        replace_text(sweep.figures_file(setting), json.dumps(record, indent=1) + "\n")

    plain = replace(sweep.engine, pool=None, draft_tokens=0)
    for engine, is_plain in ((plain, True), (sweep.engine, False)):
        todo = [s for s in sweep.settings if s.is_plain == is_plain and _finished(sweep, s) is None]
        if todo:
            measure(engine, todo, rows, sweep.sampling, sweep.concurrency, keep)
    found = {setting.name: _finished(sweep, setting) for setting in sweep.settings}
    return {name: figures for name, figures in found.items() if figures is not None}


def _finished(sweep: Sweep, setting: Setting) -> dict[str, Any] | None:
    """The figures of a setting whose texts are complete; None if they are still to be generated.

    Raises:
        DareError: there is something else in its place.
    """
    texts, file = sweep.knowledge_file(setting), sweep.figures_file(setting)
    if not (texts.exists() and file.exists()):
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        before, figures = dict(record["settings"]), dict(record["figures"])
    except (ValueError, KeyError, TypeError):
        raise DareError(f"{file} is not what a sweep wrote; remove it, or choose another --output.") from None
    now = json.loads(json.dumps(sweep.identity(setting)))
    differing = [name for name in now if before.get(name) != now[name]]
    if differing:
        raise DareError(
            f"{texts} was generated with another {differing[0].replace('_', ' ')}; remove it, or choose "
            "another --output."
        )
    return figures
