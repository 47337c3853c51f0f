"""Where the program begins: an interruption is one line from the first moment on."""

import sys

from ..core.stopping import Stopped, end_with

BENCH_CELL = "--one"
"""Option of a process that makes a cell of a bench for another one."""


def main() -> None:
    """Run the command line."""
    try:
        if BENCH_CELL in sys.argv:  # before the imports, which take seconds
            end_with()
        from .app import main as run

        run()
    except Stopped as error:  # while a command is imported
        print("error: terminated; run the same command again", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
