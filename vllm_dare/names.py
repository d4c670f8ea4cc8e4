"""What ids, and names of groups and attributes, may be: the same for requests as for documents."""

MAX_CHARACTERS = 1000


def is_name(text: str) -> bool:
    """Whether a text may be an id or a name: neither empty nor long, without NUL, and Unicode.

    Names stand in the pool's files, which are UTF-8, and are arguments of `vllm-dare pool`, which cannot hold
    NUL.
    """
    return 0 < len(text) <= MAX_CHARACTERS and "\0" not in text and is_unicode(text)


def is_unicode(text: str) -> bool:
    """Whether there is no half of a surrogate pair in it, which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
