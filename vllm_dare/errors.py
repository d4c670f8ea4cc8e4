"""The errors a user meets: each message is one sentence that says what is wrong and what to do."""


class DareError(ValueError):
    """Base of every error that vllm-dare raises on bad input; its text is meant for the user."""


class PoolError(DareError):
    """A pool, segment, manifest or document that cannot be used."""


class StoreError(PoolError):
    """An object store that cannot be reached, read or written to."""


class ConfigError(DareError):
    """A `dare` setting, or a combination with vLLM's settings, that cannot work."""


class RequestError(DareError):
    """A `dare_*` request key or value that is not valid.

    Attributes:
        key: the offending key, such as ``"dare_top_k"``.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
