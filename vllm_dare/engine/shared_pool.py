"""A store's pool in one engine: where it is on this node, and what the log says of it."""

from collections.abc import Callable, Sequence

from vllm.logger import init_logger

from vllm_dare.config import DareConfig
from vllm_dare.pool.live import LiveDocument
from vllm_dare.pool.pool import RetrievalPool
from vllm_dare.pool.tokenizer import TokenizerInfo
from vllm_dare.store.follow import Follower
from vllm_dare.store.mirror import Mirror, open_mirror
from vllm_dare.store.outbox import Outbox

logger = init_logger(f"vllm.{__name__}")  # below "vllm", the only logger that vLLM gives a handler


class SharedPool:
    """Keeps this node's copy of a store's pool up to date while the engine serves from it.

    Args:
        url: the store.
        learns: whether the engine learns, in which case the store may still be empty.
        on_outage: called, in the background, when the store fails, once for each outage.

    Raises:
        PoolError: there is no pool, nothing of it is here and the store cannot be reached, or the cache
            cannot be written to.
    """

    def __init__(self, url: str, *, learns: bool, on_outage: Callable[[], None]) -> None:
        # A failure here is one that the front end has met just before, and logged.
        self._mirror, failure = open_mirror(url, learns=learns)
        self._on_outage = on_outage
        self._outbox = Outbox(self._mirror.place) if learns else None
        self._follower = Follower(
            self._mirror,
            self._outbox,
            is_failing=failure is not None,
            on_failure=self._failed,
            on_recovery=self._recovered,
        )

    @classmethod
    def of(cls, config: DareConfig, on_outage: Callable[[], None]) -> "SharedPool | None":
        """That of an engine's settings; None if its pool is a directory, or if it has none."""
        if not isinstance(config.pool, str):
            return None
        return cls(config.pool, learns=config.live is not None, on_outage=on_outage)

    @property
    def mirror(self) -> Mirror:
        """The copy."""
        return self._mirror

    def pass_on(self, tokenizer: TokenizerInfo, documents: Sequence[LiveDocument]) -> None:
        """Send learned text to the store, when it can be reached.

        Raises:
            OSError: it cannot be written to disk.
        """
        if self._outbox is not None:
            self._outbox.add(documents, tokenizer)

    def start(self) -> None:
        """Begin to follow the store."""
        self._follower.start()

    def close(self) -> None:
        """End that."""
        self._follower.close()
        self._mirror.close()

    def want(self, group: str | None, served: RetrievalPool | None) -> None:
        """Have a group's text fetched for later requests, if it is not served yet and would draft."""
        if group is None or served is None or group in served.groups or not served.blend.asks_groups:
            return
        self._follower.want(group)

    def _failed(self, error: Exception) -> None:
        self._on_outage()
        logger.error("DARE: %s Serving goes on with what is cached.", error)

    def _recovered(self) -> None:
        logger.info("DARE: the store %s can be used again.", self._mirror.store.url)
