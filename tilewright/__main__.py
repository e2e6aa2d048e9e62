"""`python -m tilewright` and the console script: the command line."""

import signal


def main() -> None:
    """Load the command line and run it.

    Loading takes a moment. Ctrl-C within it ends the process without a word, where Python would
    print a traceback of some import.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else it is ignored, and stays so
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tilewright.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()


if __name__ == "__main__":
    main()
