"""The frameworks by name, and one's own."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from vllm_dare.errors import DareError
from vllm_dare.prompting import kar, once, rlmrec, trawl
from vllm_dare.prompting.hook import load_hook, reason
from vllm_dare.prompting.subjects import Subject

About = Literal["users", "items"]
Builder = Callable[[Any], Any]

FRAMEWORKS: Mapping[str, Mapping[About, Builder]] = {
    "kar": {"users": kar.user_messages, "items": kar.item_messages},
    "once": {"users": once.user_messages, "items": once.item_messages},
    "trawl": {"users": trawl.user_messages, "items": trawl.item_messages},
    "rlmrec": {"users": rlmrec.user_messages, "items": rlmrec.item_messages},
}


def load_builder(framework: str, about: About) -> Builder:
    """The function that makes the prompts.

    Args:
        framework: a name in `FRAMEWORKS`; or ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``, a function that
            takes a subject (`vllm_dare.prompting.subjects.User` or ``Item``) and returns a text or a chat.
        about: what the prompts are about.

    Raises:
        DareError: there is no such framework, file, module or function.
    """
    if framework in FRAMEWORKS:
        return FRAMEWORKS[framework][about]
    if ":" not in framework:
        raise DareError(
            f"There is no framework {framework!r}; there are {', '.join(FRAMEWORKS)}, or give your own as "
            "FILE.py:FUNCTION or MODULE:FUNCTION."
        )
    return load_hook(framework)


def prompt_fields(builder: Builder, framework: str, subject: Subject) -> dict[str, Any]:
    """The ``prompt`` or ``messages`` of a row.

    Raises:
        DareError: the function failed, or returned neither a text nor a chat; the message names the subject.
    """
    who = f"{type(subject).__name__.lower()} {subject.id}"
    try:
        made = builder(subject)
    except Exception as error:  # whatever a function of somebody else's comes up with
        raise DareError(f"The framework {framework} failed for {who} ({reason(error)}); mend it.") from error
    if isinstance(made, str) and made.strip():
        return {"prompt": made}
    if isinstance(made, list) and made and all(_is_message(message) for message in made):
        return {"messages": made}
    raise DareError(
        f"The framework {framework} returned {_shown(made)} for {who}; return a text, or a list of messages "
        'such as [{"role": "user", "content": "…"}].'
    )


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        return False
    return all(isinstance(part, str) for pair in message.items() for part in pair)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
