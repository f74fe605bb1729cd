"""The `hebm` command, and `python -m hebmtool`.

Here stands what must be in place before anything slow is imported: an interrupt that comes while imports run ends the
process at once, for an exception raised in the middle of them may be turned into another or be lost.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

INTERRUPTED = 130


def main() -> None:
    """Entry point."""
    with suppress(ValueError):  # in a thread there is no handler to set
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and one that is ignored stays so
            signal.signal(signal.SIGINT, _interrupted)
    from hebmtool.cli.main import main as command

    command()


def _interrupted(number: int, frame: FrameType | None) -> None:
    while frame is not None and "importlib" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        signal.signal(number, _leave)  # the next one does not ask
        raise KeyboardInterrupt
    _leave()


def _leave(*_: object) -> None:
    # Whatever is being written is written beside its target and is then lost, as after a kill.
    with suppress(OSError):
        os.write(2, b"hebm: interrupted\n")
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
