"""Hostile request keys: each request is served, or refused in a short sentence as the client's error.

    python -m tests.fuzz.requests --cases 100000 --seed 1
    python -m tests.fuzz.requests --seed 1 --only 4711        # one case again, in this process

A fault is a crash, a hang, an error that is none of the client's, or a message of more than 600 characters.
The requests that are accepted are routed, and their rules and groups are made what kernels and pool files
take. The exit status is 1 if there was one.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm.exceptions import VLLMValidationError

from tests.fuzz.campaign import Result, run_cases
from tests.fuzz.pool_cases import honest_pools
from vllm_dare.config import DareConfig
from vllm_dare.engine import configured, start
from vllm_dare.errors import RequestError
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.request import KNOWN_KEYS, RequestOptions, request_args
from vllm_dare.routing.router import Router
from vllm_dare.verification.request_rule import RequestRule
from vllm_dare.verification.token_guards import TokenGuards

_MOST_CHARACTERS = 600
_TEXTS = ["a", "b", " c", "7", "{", '"', "\n", "é", "Drama", " War"]


class Unshowable:
    """What even its own description fails of."""

    def __repr__(self) -> str:
        raise RuntimeError


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


PLAUSIBLE: dict[str, list[Any]] = {
    "dare_group": ["users/0", "items/b", 3],
    "dare_user": ["u1", 7],
    "dare_item": ["i2"],
    "dare_history": [["i1", "i3"], [1, 2]],
    "dare_attributes": [["genre=War", "age=25"], {"genre": ["War", "Drama"], "age": 25}],
    "dare_verification": ["strict", "relaxed"],
    "dare_preset": ["content", "careful", "fast", "paper", "fly"],
    "dare_top_k": [1, 3],
    "dare_min_prob": [0.1],
    "dare_min_ratio": [0.5],
    "dare_min_entropy": [0.3],
    "dare_window": [0, 6],
    "dare_max_relaxed": [0, 9],
    "dare_max_relaxed_per_100": [10],
    "dare_max_relaxed_in_row": [2],
    "dare_never_relax": [["Drama", 3], []],
    "dare_protect": [["digits", "json", "quoted"]],
}
SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 100, 101, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 2**64,
    10**400, 10**5000, -(10**5000), 0.0, -0.0, 1.0, 0.5, 1e-320, 1e308, float("nan"), float("inf"),
    -float("inf"), "", " ", "a", "=", "a=", "=b", "a=b", "a=b=c", "\x00", "\n", "\r\nX: y", "\u2028",
    "\ud800", "a=\udfff", "é", "漢" * 30, "\U0001f600" * 400, "x" * 999, "x" * 1000, "x" * 1001, "x" * 10**5,
    "users/../..", "%s%n", "{0.__class__}", "9" * 5000, b"", b"bytes", bytearray(b"x"), 1j, ..., object(),
    Unshowable(), Unshowable, np.int64(3), np.float32(1), np.array([1, 2]), np.str_("u1"), {}, {1},
    frozenset(), range(3), (), (1,),
]  # fmt: skip
KEYS: list[Any] = [
    "dare_", "dare_grup", "dare_GROUP", "dare_ group", "dare_\n", "dare_\ud800", "dare_" + "x" * 10**5,
    "dare_\u202egroup", "DARE_group", "other", "", "\ud800", 3, None, ("dare_group",), b"dare_group",
    "dare_guard_stop_tokens", "dare_mode",
]  # fmt: skip
CONFIGS = [
    DareConfig(),
    DareConfig.model_validate({"verification": {"mode": "relaxed"}}),
    DareConfig.model_validate({"verification": {"preset": "fast", "never_relax": ["a", 2]}}),
    DareConfig.model_validate(
        {"limits": {"presets": ["fast"], "top_k": 3, "min_prob": 0.05, "max_relaxed": 40}}
    ),
    DareConfig(allow_override=False),
    DareConfig(allow_groups=False),
]
Rng = np.random.Generator


def make_request(seed: int, number: int) -> tuple[Any, DareConfig]:
    """What a request brings, and the settings of its engine."""
    rng = np.random.default_rng((seed, number))
    config = CONFIGS[int(rng.integers(len(CONFIGS)))]
    if rng.random() < 0.005:
        return _scalar(rng), config
    request: dict[Any, Any] = {}
    for _ in range(int(rng.choice([1, 1, 2, 3, 5, 9]))):
        key = KNOWN_KEYS[int(rng.integers(len(KNOWN_KEYS)))]
        request[key] = _value(rng, key)
    if rng.random() < 0.1:
        key = KEYS[int(rng.integers(len(KEYS)))]
        request[key] = _scalar(rng)
    if rng.random() < 0.001:
        request |= {f"{'dare_' if rng.random() < 0.5 else ''}{i}": i for i in range(10**5)}
    return request, config


def _scalar(rng: Rng) -> Any:
    return SCALARS[int(rng.integers(len(SCALARS)))]


def _value(rng: Rng, key: str) -> Any:
    how = rng.random()
    if how < 0.5:
        return PLAUSIBLE[key][int(rng.integers(len(PLAUSIBLE[key])))]
    if how < 0.7:
        return _scalar(rng)
    if how < 0.9:
        return [_element(rng) for _ in range(int(rng.choice([1, 2, 3, 99, 100, 101])))]
    return _large_or_odd(rng)


def _large_or_odd(rng: Rng) -> Any:
    how = rng.random()
    if how < 0.4:
        return {_key(rng): _element(rng) for _ in range(3)}
    if how < 0.8:
        return [_string(rng) for _ in range(int(rng.integers(1, 9)))]
    if how < 0.9:
        return nested(int(rng.choice([1, 2, 50, 900, 10**5])))
    size = int(rng.choice([999, 1000, 1001, 10**5]))
    return [[_scalar(rng)] * size, list(range(size)), ["a=b"] * size, "y" * size * 100][int(rng.integers(4))]


def _element(rng: Rng) -> Any:
    return _scalar(rng) if rng.random() < 0.8 else [_scalar(rng), {"a": _scalar(rng)}]


def _key(rng: Rng) -> Any:
    try:
        hash(key := _scalar(rng))
    except TypeError:
        return "name"
    return key


def _string(rng: Rng) -> str:
    codes = rng.choice(
        [61, 97, 10, 0, 0x3B1, 0x1F600, 0xD800, 0xDFFF, 0x202E, 0xFFFF], int(rng.integers(1, 12))
    )
    return "".join(map(chr, codes.tolist()))


class Engine:
    """What a request meets in an engine, but for vLLM."""

    def __init__(self, folder: Path) -> None:
        honest_pools(folder / "pools")
        self.router: Router = RetrievalPool.open(folder / "pools" / "full").router
        self.guards = TokenGuards(12, lambda: _TEXTS, lambda text: [len(text.encode()) % 9])

    def run(self, seed: int, number: int) -> Result:
        """Run a case; what it raises is a fault."""
        request, config = make_request(seed, number)
        outcome = self._serve(request, config)
        _check_front_ends(request, config, refused=outcome != "accepted")
        if isinstance(request, Mapping):
            _build(request)
        return Result(outcome)

    def _serve(self, request: Any, config: DareConfig) -> str:
        try:
            options = RequestOptions.parse(request, config)
        except RequestError as error:
            _check_error(error)
            return f"refused: {error.key[:30]}"
        group = self.router.route(options.query).group
        json.dumps([group, options.query.user]).encode()
        (group or "").encode()  # names are written into manifests
        rule = options.verification
        made = RequestRule(rule, (2,), self.guards.prepare(rule))
        assert not np.isnan(made.row).any()
        return "accepted"


def _check_error(error: RequestError) -> None:
    message = str(error)
    assert len(message) <= _MOST_CHARACTERS, f"a message of {len(message)} characters: {message[:300]}"
    assert len(error.key) <= 80, f"a key of {len(error.key)} characters"
    assert "\n" not in message + error.key, message
    (message + error.key).encode()


def _check_front_ends(request: Any, config: DareConfig, *, refused: bool) -> None:
    """vLLM's server and its offline API call these; both refuse as `RequestOptions.parse` does."""
    speculative = SimpleNamespace(method="custom_class", model=configured.PROPOSER_PATHS[0])
    settings = {"dare": config.model_dump(mode="json", exclude_defaults=True)}
    engine = SimpleNamespace(speculative_config=speculative, additional_config=settings)
    start._server_config = config
    for check in (
        partial(start.check_http_request, request),
        partial(start.check_request, engine, SimpleNamespace(extra_args=request)),
    ):
        try:
            check()
        except VLLMValidationError as error:
            assert len(str(error)) <= _MOST_CHARACTERS + 200
            str(error).encode()
            assert refused
        else:
            assert not refused


def _build(request: Mapping[Any, Any]) -> None:
    """`request_args` of the same values."""
    named = {"dare_verification": "verification", "dare_preset": "preset"}
    given = {
        named.get(key, key.removeprefix("dare_")): value
        for key, value in request.items()
        if isinstance(key, str) and key.startswith("dare_")
    }
    try:
        request_args(**given)
    except RequestError as error:
        _check_error(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long")
    parser.add_argument("--only", type=int, help="run this case alone")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(Path(folder))
        one = partial(engine.run, arguments.seed)
        if arguments.only is not None:
            print(one(arguments.only))
            return
        numbers = range(arguments.first, arguments.first + arguments.cases)
        report = run_cases(one, numbers, most_seconds=arguments.seconds)
    print(*report.lines(), sep="\n")
    for number, why in report.faults.items():
        print(f"\n{why}\n  python -m tests.fuzz.requests --seed {arguments.seed} --only {number}")
    sys.exit(1 if report.faults else 0)


if __name__ == "__main__":
    main()
