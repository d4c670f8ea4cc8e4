from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from vllm_dare.config import DareConfig
from vllm_dare.errors import RequestError
from vllm_dare.request import KNOWN_KEYS, RequestOptions, request_args
from vllm_dare.routing.query import Query
from vllm_dare.verification.rule import VerificationConfig

RELAXED = DareConfig.model_validate({"verification": {"mode": "relaxed", "min_prob": 0.2}})


def test_no_metadata_takes_the_operators_defaults() -> None:
    for extra_args in (None, {}, {"kv_transfer_params": {"x": 1}}):
        options = RequestOptions.parse(extra_args, RELAXED)
        assert (options.query.group, options.query.user, options.query.item) == (None, None, None)
        assert options.verification == RELAXED.verification


def test_ids_may_be_strings_or_integers() -> None:
    options = RequestOptions.parse({"dare_group": 3, "dare_user": 42, "dare_item": "m7"}, DareConfig())
    assert (options.query.group, options.query.user, options.query.item) == ("3", "42", "m7")


def test_a_history_is_a_list_of_ids() -> None:
    assert RequestOptions.parse({"dare_history": [3, "m7", 3]}, DareConfig()).query.history == (
        "3",
        "m7",
        "3",
    )
    assert RequestOptions.parse({"dare_history": []}, DareConfig()).query.history == ()


def test_attributes_come_as_a_dictionary_or_as_texts() -> None:
    pairs = (("genre", "Comedy"), ("genre", "War"), ("age", "25"), ("note", "a=b"))
    for given in (
        {"genre": ["Comedy", "War"], "age": 25, "note": "a=b", "unknown": None},
        ["genre=Comedy", "genre=War", "age=25", "note=a=b"],
    ):
        assert RequestOptions.parse({"dare_attributes": given}, DareConfig()).query.attributes == pairs


def test_request_args_are_what_the_server_takes() -> None:
    """vLLM's `vllm_xargs` are texts, numbers and lists of these; no dictionaries."""
    protocol = pytest.importorskip("vllm.entrypoints.openai.completion.protocol")
    args = request_args(history=[1, "b"], attributes={"genre": ["Comedy", "War"], "age": 25})
    request = protocol.CompletionRequest.model_validate({"prompt": "a", "vllm_xargs": args})
    assert request.vllm_xargs == args
    with pytest.raises(ValidationError):
        dictionary = {"dare_attributes": {"age": 25}}
        protocol.CompletionRequest.model_validate({"prompt": "a", "vllm_xargs": dictionary})


def test_request_args_are_read_as_they_were_meant() -> None:
    args = request_args(history=(1, "b"), attributes={"genre": ["Comedy", "War"], "age": 25})
    assert args == {"dare_history": [1, "b"], "dare_attributes": ["genre=Comedy", "genre=War", "age=25"]}
    query = RequestOptions.parse(args, DareConfig()).query
    assert query.history == ("1", "b")
    assert query.attributes == (("genre", "Comedy"), ("genre", "War"), ("age", "25"))
    with pytest.raises(RequestError, match="dare_attributes"):
        request_args(attributes={"genre": ""})


def test_override_changes_only_what_it_names() -> None:
    options = RequestOptions.parse({"dare_top_k": 3}, RELAXED)
    assert options.verification == RELAXED.verification.model_copy(update={"top_k": 3})
    assert RequestOptions.parse({"dare_verification": "strict"}, RELAXED).verification.mode == "strict"


@pytest.mark.parametrize(
    ("extra_args", "key"),
    [
        ({"dare_grup": "x"}, "dare_grup"),
        ({"dare_group": ""}, "dare_group"),
        ({"dare_group": 3.0}, "dare_group"),
        ({"dare_user": True}, "dare_user"),
        ({"dare_user": 1.5}, "dare_user"),
        ({"dare_item": ["a"]}, "dare_item"),
        ({"dare_history": "a"}, "dare_history"),
        ({"dare_history": ["a", ""]}, "dare_history"),
        ({"dare_history": [1.5]}, "dare_history"),
        ({"dare_history": ["x" * 9999, None]}, "dare_history"),
        ({"dare_group": "a\0"}, "dare_group must be a non-empty string"),
        ({"dare_history": ["a"] * 1001}, "dare_history must be a list of at most 1000 ids"),
        ({"dare_attributes": "genre=Comedy"}, "dare_attributes"),
        ({"dare_attributes": ["Comedy"]}, "dare_attributes holds 'Comedy', which is not"),
        ({"dare_attributes": ["=Comedy"]}, "dare_attributes"),
        ({"dare_attributes": ["genre="]}, "dare_attributes"),
        ({"dare_attributes": [["genre", "Comedy"]]}, "dare_attributes"),
        ({"dare_attributes": [f"a={i}" for i in range(1001)]}, "dare_attributes must be .* at most 1000"),
        ({"dare_attributes": {"a": list(range(1001))}}, "dare_attributes must be .* at most 1000"),
        ({"dare_attributes": {"": "Comedy"}}, "dare_attributes"),
        ({"dare_attributes": {"a=b": "c"}}, "dare_attributes has the name 'a=b'"),
        ({"dare_attributes": {3: "Comedy"}}, "dare_attributes"),
        ({"dare_attributes": {"age": 1.5}}, "dare_attributes: 'age' must be a non-empty string or an int"),
        ({"dare_attributes": {"age": True}}, "dare_attributes"),
        ({"dare_attributes": {"age": {"of": "man"}}}, "dare_attributes"),
        ({"dare_verification": "lax"}, "dare_verification"),
        ({"dare_top_k": 0}, "dare_top_k"),
        ({"dare_top_k": "2"}, "dare_top_k"),
        ({"dare_min_prob": 1.0}, "dare_min_prob"),
        ({"dare_min_ratio": -0.1}, "dare_min_ratio"),
        ({"dare_min_ratio": 1.1}, "dare_min_ratio"),
        ({"dare_preset": "careless"}, "dare_preset"),
        ({"dare_preset": ["fast"]}, "dare_preset"),
        ({"dare_preset": "fast", "dare_verification": "strict"}, "dare_preset"),
        ({"dare_max_relaxed": -1}, "dare_max_relaxed"),
        ({"dare_max_relaxed_per_100": 101}, "dare_max_relaxed_per_100"),
        ({"dare_max_relaxed_in_row": 1.5}, "dare_max_relaxed_in_row"),
        ({"dare_window": -2}, "dare_window"),
        ({"dare_never_relax": ["", "x"]}, "dare_never_relax"),
        ({"dare_never_relax": [-1]}, "dare_never_relax"),
        ({"dare_protect": ["letters"]}, "dare_protect"),
        ({"dare_protect": "digits"}, "dare_protect"),
    ],
)
def test_bad_keys_and_values_name_the_key(extra_args: dict[str, object], key: str) -> None:
    with pytest.raises(RequestError, match=key) as caught:
        RequestOptions.parse(extra_args, DareConfig())
    assert key.startswith(caught.value.key)
    assert caught.value.key in extra_args
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


ODD = [
    "x" * 10**7, "\ud800", 10**5000, 2**63, ["x" * 10**7], ["\ud800"], [10**5000], [2**63], nested(10**5),
    [Unshowable()], {"x" * 10**7: 1}, [["x"] * 10**5], list(range(10**5)), float("nan"), b"x" * 10**6,
]  # fmt: skip


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("key", [*KNOWN_KEYS, "dare_\ud800" * 10**5], ids=lambda key: ascii(key)[:40])
def test_no_value_is_too_large_or_odd_to_be_refused_in_a_short_sentence(key: str, value: object) -> None:
    if (key, value) == ("dare_min_entropy", 2**63):
        pytest.skip("an entropy that no text has is a bound all the same")
    with pytest.raises(RequestError) as caught:
        RequestOptions.parse({key: value}, RELAXED)
    assert len(str(caught.value)) < 600
    assert len(caught.value.key) < 80
    (str(caught.value) + caught.value.key).encode()


@pytest.mark.parametrize("extra_args", ["dare_group", [("dare_group", "a")], 3, np.array([1, 2])], ids=str)
def test_what_is_no_dictionary_is_refused(extra_args: Any) -> None:
    with pytest.raises(RequestError, match="extra_args must be a dictionary") as caught:
        RequestOptions.parse(extra_args, DareConfig())
    assert caught.value.key == "extra_args"


def test_keys_that_are_no_text_are_none_of_ours() -> None:
    extra_args: dict[Any, Any] = {3: 1, None: 1, b"dare_group": "a"}
    assert RequestOptions.parse(extra_args, DareConfig()).query == Query()


@pytest.mark.parametrize("value", ["x" * 1000, 2**63 - 1, -(2**63)])
def test_the_longest_ids_are_taken(value: str | int) -> None:
    args = request_args(user=value, history=[value], attributes={"a": 2**62})
    assert RequestOptions.parse(args, DareConfig()).query.user == str(value)


def test_a_text_is_no_history() -> None:
    with pytest.raises(RequestError, match="dare_history must be a list"):
        request_args(history="u1")
    with pytest.raises(RequestError, match="dare_attributes must be a dictionary"):
        request_args(attributes=3)  # type: ignore[arg-type]


def test_a_preset_takes_the_place_of_the_operators_rule() -> None:
    got = RequestOptions.parse({"dare_preset": "fast", "dare_min_prob": 0.3}, RELAXED).verification
    assert got == VerificationConfig(preset="fast", min_prob=0.3)
    assert got.mode == "relaxed"


@pytest.mark.parametrize("key", ["dare_top_k", "dare_window", "dare_max_relaxed"])
def test_bounds_need_a_request_that_is_relaxed(key: str) -> None:
    for config, extra, message in (
        (DareConfig(), {}, "verifies strictly unless asked: add dare_verification 'relaxed'"),
        (RELAXED, {"dare_verification": "strict"}, "contradict each other"),
    ):
        with pytest.raises(RequestError, match=message) as caught:
            RequestOptions.parse({key: 3, **extra}, config)
        assert caught.value.key == key
    asked = {key: 3, "dare_verification": "relaxed"}
    assert RequestOptions.parse(asked, DareConfig()).verification.relaxes


def test_lists_come_as_lists_over_http() -> None:
    got = RequestOptions.parse({"dare_never_relax": ["Drama", 7], "dare_protect": ["json"]}, RELAXED)
    assert got.verification.never_relax == ("Drama", 7)
    assert got.verification.protect == ("json",)


LIMITS = {"presets": ["careful", "fast"], "top_k": 3, "min_prob": 0.05, "max_relaxed": 40}


@pytest.mark.parametrize(
    ("extra_args", "key", "message"),
    [
        ({"dare_preset": "paper"}, "dare_preset", "allows the presets careful, fast, not 'paper'"),
        ({"dare_top_k": 4, "dare_max_relaxed": 9}, "dare_top_k", r"dare_top_k 4 is beyond the limit .* 3"),
        (
            {"dare_preset": "fast", "dare_max_relaxed": 41},
            "dare_max_relaxed",
            r"dare_max_relaxed 41 is beyond the limit .* 40",
        ),
        ({"dare_max_relaxed": 9, "dare_min_prob": 0.01}, "dare_min_prob", r"dare_min_prob 0.01 is beyond"),
    ],
)
def test_the_operators_limits_name_the_key(extra_args: dict[str, object], key: str, message: str) -> None:
    config = DareConfig.model_validate({"verification": {"mode": "relaxed"}, "limits": LIMITS})
    with pytest.raises(RequestError, match=message) as caught:
        RequestOptions.parse(extra_args, config)
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


def test_within_the_operators_limits() -> None:
    config = DareConfig.model_validate({"limits": LIMITS})
    asked = {"dare_preset": "fast", "dare_max_relaxed": 40}
    assert RequestOptions.parse(asked, config).verification.max_relaxed == 40
    tightened = RequestOptions.parse({"dare_preset": "fast", "dare_min_prob": 0.2}, config).verification
    assert (tightened.top_k, tightened.min_prob, tightened.max_relaxed) == (3, 0.2, 40)
    assert not tightened.drawn_drafts
    assert RequestOptions.parse({"dare_verification": "strict"}, config).verification.mode == "strict"
    assert RequestOptions.parse({"dare_group": "a"}, config).verification == config.verification


def test_the_operator_can_forbid_rules_but_not_groups() -> None:
    config = DareConfig(allow_override=False)
    assert RequestOptions.parse({"dare_group": "a"}, config).query.group == "a"
    with pytest.raises(RequestError, match="dare_min_prob"):
        RequestOptions.parse({"dare_min_prob": 0.3}, config)


def test_request_args_builds_what_parse_reads() -> None:
    args = request_args(group="users/3", verification="relaxed", top_k=3, min_prob=0.2, min_ratio=0.5)
    assert args == {
        "dare_group": "users/3",
        "dare_verification": "relaxed",
        "dare_top_k": 3,
        "dare_min_prob": 0.2,
        "dare_min_ratio": 0.5,
    }
    options = RequestOptions.parse(args, DareConfig())
    assert options.query.group == "users/3"
    assert options.verification.top_k == 3
    assert request_args(user=7, item="x") == {"dare_user": 7, "dare_item": "x"}
    assert request_args() == {}
    with pytest.raises(RequestError, match="dare_top_k"):
        request_args(top_k=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dare_group", "g"),
        ("dare_user", 7),
        ("dare_item", "i"),
        ("dare_history", ["i1"]),
        ("dare_attributes", ["age=25"]),
    ],
)
def test_an_operator_may_refuse_groups(key: str, value: object) -> None:
    config = DareConfig(allow_groups=False)
    with pytest.raises(RequestError, match=key) as caught:
        RequestOptions.parse({key: value}, config)
    assert caught.value.key == key
    assert RequestOptions.parse({"dare_preset": "fast"}, config).verification.relaxes
    RequestOptions.parse({key: value}, DareConfig())
