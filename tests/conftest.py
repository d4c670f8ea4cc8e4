"""What all tests need."""

import signal

from hypothesis import settings

# A job in the background of a script ignores Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing: machines are shared, and kernels are compiled when first called.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
