"""Compactors that race, are killed and are paused: is any learned document lost or doubled?

    python -m tests.benchmarks.compaction --rounds 200

What a round is: `tests.compaction_race`.
"""

import argparse
import sys

from ..compaction_race import campaign


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    def show(done: int) -> None:
        print(f"\r{done} rounds without fault", end="", file=sys.stderr)

    for name, value in campaign(arguments.rounds, arguments.seed, show).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
