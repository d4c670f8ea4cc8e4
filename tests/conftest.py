"""What all tests need."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A job in the background of a script ignores Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing: machines are shared, and kernels are compiled when first called.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """An interrupted run ignores further signals to its end; this process goes on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
