"""Where the program begins: an interruption is one line from the first moment on."""

import sys

BENCH_CELL = "--one"
"""Option of a process that makes a cell of a bench for another one."""


def main() -> None:
    """Run the command line."""
    try:
        if BENCH_CELL in sys.argv:  # before the imports, which take seconds
            from ..core.stopping import end_with

            end_with()
        from .app import main as run

        run()
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
