"""The command's first lines: `vllm-dare`, or `python -m vllm_dare`."""

import sys


def main() -> None:
    """Run the command line; an interrupt, also while it is still being imported, ends it quietly."""
    try:
        from vllm_dare.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
