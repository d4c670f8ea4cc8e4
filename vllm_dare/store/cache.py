"""The node's cache of what stores hold: one directory for each store, all together bounded.

    <cache>/<store>/pool/         a pool directory, as engines open it
    <cache>/<store>/pool/live/    what this node's engines learned
    <cache>/<store>/outbox/       the same on its way to the store, see `vllm_dare.store.outbox`
    <cache>/<store>/manifests/    versions, with all their groups
    <cache>/<store>/lock          held by who changes the pool directory, see `vllm_dare.pool.lock.locked`
    <cache>/<store>/users         see `Place`

Only segment files of stores that nobody uses are ever removed to make room, the least recently used store's
first. What a process has open stays, and so does text that may not be in the store yet.
"""

import fcntl
import hashlib
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from vllm_dare.errors import ConfigError, PoolError
from vllm_dare.pool.manifest import MANIFEST_NAME, SEGMENTS_DIRECTORY

_CACHE = "VLLM_DARE_CACHE"
_LIMIT = "VLLM_DARE_CACHE_GB"
_DEFAULT_GB = 50.0
_POOL = "pool"


class CacheFullError(PoolError):
    """What is to be fetched does not fit beside what is in use."""


def cache_root() -> Path:
    """Where the cache is, ``~/.cache/vllm-dare`` unless the environment says otherwise."""
    return Path(os.environ.get(_CACHE) or "~/.cache/vllm-dare").expanduser()


def cache_limit() -> int:
    """How many bytes of segment files it may hold.

    Raises:
        ConfigError: the environment says something that is no size.
    """
    text = os.environ.get(_LIMIT) or str(_DEFAULT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = 0.0
    if not gigabytes > 0:
        raise ConfigError(f"{_LIMIT} must be a number of gigabytes above 0, not {text!r}.")
    return int(gigabytes * 1e9)


def pool_directory(location: Path | str) -> Path:
    """Where an engine finds its pool: the directory itself, or that which a store's pool is fetched into."""
    return location if isinstance(location, Path) else cache_root() / _name(location, "") / _POOL


class Place:
    """A store's directory in the cache; made if it is missing, and kept from being emptied until `close`.

    Args:
        url: the store.
        purpose: tells several places for one store apart.

    Attributes:
        root: the directory.
        pool: the pool directory in it.

    Raises:
        PoolError: the cache cannot be written to.
    """

    def __init__(self, url: str, purpose: str = "") -> None:
        self.root = cache_root() / _name(url, purpose)
        self.pool = self.root / _POOL
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._users = _open(self.root / "users")
            fcntl.flock(self._users, fcntl.LOCK_SH)  # waits while somebody empties it
            os.utime(self._users)
        except OSError as error:
            raise PoolError(
                f"Cannot write to the cache {self.root} ({error.strerror or error}); set {_CACHE} to a "
                "directory that can be written to."
            ) from None

    def close(self) -> None:
        """Let others empty it."""
        if self._users >= 0:
            os.close(self._users)
            self._users = -1


def make_room(num_bytes: int) -> None:
    """Remove what nobody uses until so many bytes more fit into the cache.

    Raises:
        CacheFullError: they do not fit.
        ConfigError: see `cache_limit`.
    """
    limit = cache_limit()
    sizes = {place: _num_bytes(place) for place in cache_root().iterdir() if (place / "users").exists()}
    excess = sum(sizes.values()) + num_bytes - limit
    for place in sorted(sizes, key=lambda place: (place / "users").stat().st_mtime):
        if excess > 0 and sizes[place] and _empty(place):
            excess -= sizes[place]
    if excess > 0:
        raise CacheFullError(
            f"The cache {cache_root()} has no room for {num_bytes / 1e9:,.3f} GB more: what is in use fills "
            f"its {limit / 1e9:g} GB; set {_LIMIT} to more."
        )


def _empty(place: Path) -> bool:
    """Remove a store's segment files; False if somebody uses it."""
    users = _open(place / "users")
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        (place / _POOL / MANIFEST_NAME).unlink(
            missing_ok=True
        )  # first, or it would name files that are not there
        shutil.rmtree(place / _POOL / SEGMENTS_DIRECTORY)
        return True
    finally:
        os.close(users)


def _num_bytes(place: Path) -> int:
    """The size of a store's segment files, but for what its engines learned."""
    num_bytes = 0
    for path in (place / _POOL / SEGMENTS_DIRECTORY).glob("*"):
        with suppress(FileNotFoundError):  # it has just got its name
            num_bytes += path.stat().st_size
    return num_bytes


def _name(url: str, purpose: str) -> str:
    """What somebody who looks at the cache recognizes, and no other store has."""
    url = url.rstrip("/")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", url)[-40:].strip("-")
    return "-".join(filter(None, (readable, hashlib.sha256(url.encode()).hexdigest()[:8], purpose)))


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
