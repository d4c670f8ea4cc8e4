"""Orders to the engines that learn into a pool: write down what you have learned, and forget this text.

Text is on disk at most ten seconds after it was written; until then it is in the memory of an engine, which
nobody else can reach. So whoever removes text from a pool leaves an order in ``live/orders.json``, and every
engine looks there once a second. An engine that has followed all orders up to a number holds a lock of that
number, so that others can tell when nobody is behind.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from vllm_dare.errors import PoolError
from vllm_dare.pool.byte_lock import ByteLock, is_byte_locked
from vllm_dare.pool.files import open_file, replace_text, signature
from vllm_dare.pool.json_reader import parse_json

ORDERS_NAME = "orders.json"
_FOLLOWERS_NAME = "followers"
# An engine looks every second. One that has missed more forgets all that is in its memory.
_KEPT_ORDERS = 1000
_MOST_VALUES = 100 * _KEPT_ORDERS

_Count = Annotated[int, Field(ge=0, lt=2**62)]


class Order(BaseModel):
    """One order; without keys and groups it only asks for what was learned to be written down.

    Attributes:
        number: 1 for the first order of a pool, and so on.
        keys: whose text is to be forgotten, see `vllm_dare.pool.segment.PoolDocument`.
        groups: the groups whose text is to be forgotten.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: _Count
    keys: list[int] = Field(default_factory=list)
    groups: list[str] = Field(default_factory=list)


class _Orders(BaseModel):
    """The content of the file: the last orders, the latest last."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    orders: list[Order]


@dataclass(frozen=True)
class Unfollowed:
    """The orders that an engine has not followed yet.

    Attributes:
        number: of the last one.
        keys, groups: what is to be forgotten.
        everything: whether all of the text in memory is, since some orders are not listed any more.
    """

    number: int
    keys: frozenset[int]
    groups: frozenset[str]
    everything: bool

    @property
    def only_writes(self) -> bool:
        """Whether nothing is to be forgotten, only written down."""
        return not (self.keys or self.groups or self.everything)

    def covers(self, group: str | None, key: int) -> bool:
        """Whether a document of this group and key is to be forgotten."""
        return self.everything or (key != 0 and key in self.keys) or group in self.groups


class OrderReader:
    """What an engine knows of the orders; those that were given before it started are none of its business.

    Args:
        directory: the live directory.

    Raises:
        PoolError: the orders are damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen = _signature(directory)
        self._followed = _last_number(_read(directory))
        self._lock: ByteLock | None = None

    def start(self) -> None:
        """Let others wait for this engine from now on."""
        self._lock = ByteLock(self._directory / _FOLLOWERS_NAME, self._followed)

    def unfollowed(self) -> Unfollowed | None:
        """The orders that came since; None for none. Asks the file system for nothing else than the time of
        the file as long as there are none.

        Raises:
            PoolError: the orders are damaged.
        """
        seen = _signature(self._directory)
        if seen == self._seen:
            return None
        if self._lock is not None and not self._lock.is_heard():  # the directory was made anew
            self._lock = ByteLock(self._lock.path, 0)
        orders = _read(self._directory)
        last = _last_number(orders)
        # A directory that was removed and made anew begins to count anew.
        followed = self._followed if last >= self._followed else 0
        new = [order for order in orders if order.number > followed]
        if not new:
            self._seen = seen
            return None
        return Unfollowed(
            last,
            frozenset(key for order in new for key in order.keys),
            frozenset(group for order in new for group in order.groups),
            everything=new[0].number > followed + 1,
        )

    def followed(self, number: int) -> None:
        """Nothing that the orders up to this number are about is drafted from any more."""
        self._followed = number
        if self._lock is not None:
            before, self._lock = self._lock, ByteLock(self._directory / _FOLLOWERS_NAME, number)
            before.release()


def give_order(directory: Path, keys: Collection[int] = (), groups: Collection[str] = ()) -> int:
    """Add an order, whose number is returned; the caller has `locked` the live directory.

    Raises:
        PoolError: the orders that are there are damaged.
        OSError: the file cannot be written.
    """
    orders = _read(directory)
    order = Order(number=_last_number(orders) + 1, keys=sorted(keys), groups=sorted(groups))
    content = _Orders(orders=[*orders, order][-_KEPT_ORDERS:])
    replace_text(directory / ORDERS_NAME, content.model_dump_json() + "\n")
    return order.number


def is_followed(directory: Path, number: int) -> bool:
    """Whether no engine has yet to follow the order of this number, or one before."""
    return number == 0 or not is_byte_locked(directory / _FOLLOWERS_NAME, 0, number)


def has_followers(directory: Path) -> bool:
    """Whether any engine follows orders."""
    return is_byte_locked(directory / _FOLLOWERS_NAME, 0, 0)


def _read(directory: Path) -> list[Order]:
    path = directory / ORDERS_NAME
    try:
        with open_file(path) as file:
            return _Orders.model_validate(parse_json(file.read(), _MOST_VALUES)).orders
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PoolError(f"Cannot read {path} ({error.strerror}); check its permissions.") from None
    except ValueError:
        raise PoolError(f"{path} is damaged; remove it once no engine learns into this pool.") from None


def _last_number(orders: list[Order]) -> int:
    return orders[-1].number if orders else 0


def _signature(directory: Path) -> tuple[int, ...] | None:
    try:
        return signature(directory / ORDERS_NAME)
    except OSError:
        return None
