import pytest

from vllm_dare.config import DareConfig
from vllm_dare.errors import RequestError
from vllm_dare.request import RequestOptions, request_args

RELAXED = DareConfig.model_validate({"verification": {"mode": "relaxed", "min_prob": 0.2}})


def test_no_metadata_takes_the_operators_defaults() -> None:
    for extra_args in (None, {}, {"kv_transfer_params": {"x": 1}}):
        options = RequestOptions.parse(extra_args, RELAXED)
        assert (options.group, options.user, options.item) == (None, None, None)
        assert options.verification == RELAXED.verification


def test_ids_may_be_strings_or_integers() -> None:
    options = RequestOptions.parse({"dare_group": 3, "dare_user": 42, "dare_item": "m7"}, DareConfig())
    assert (options.group, options.user, options.item) == ("3", "42", "m7")


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
        ({"dare_verification": "lax"}, "dare_verification"),
        ({"dare_top_k": 0}, "dare_top_k"),
        ({"dare_top_k": "2"}, "dare_top_k"),
        ({"dare_min_prob": 1.0}, "dare_min_prob"),
        ({"dare_min_ratio": -0.1}, "dare_min_ratio"),
    ],
)
def test_bad_keys_and_values_name_the_key(extra_args: dict[str, object], key: str) -> None:
    with pytest.raises(RequestError, match=key) as caught:
        RequestOptions.parse(extra_args, DareConfig())
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


def test_the_operator_can_forbid_rules_but_not_groups() -> None:
    config = DareConfig(allow_override=False)
    assert RequestOptions.parse({"dare_group": "a"}, config).group == "a"
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
    assert options.group == "users/3"
    assert options.verification.top_k == 3
    assert request_args(user=7, item="x") == {"dare_user": 7, "dare_item": "x"}
    assert request_args() == {}
    with pytest.raises(RequestError, match="dare_top_k"):
        request_args(top_k=0)
