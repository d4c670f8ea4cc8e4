"""Made-up input by the million: a case is its seed and its number, so that each can be run again alone."""

import os

# OpenMP's threads do not survive a fork, and cases are run in forks of a process that has sorted already.
os.environ["OMP_NUM_THREADS"] = "1"
