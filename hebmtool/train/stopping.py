"""Ending a training tidily on a signal."""

import signal
import threading
from typing import Any, Self

from hebmtool import ranks


class StopSignals:
    """Lets a training loop end tidily: `with StopSignals() as stop: ... if stop.requested: save; break`.

    The first SIGINT, SIGTERM or SIGHUP (a terminal that is closed; ignored where it was, as under nohup) only sets
    `requested` and keeps its name in `signal`; a SIGINT after that raises KeyboardInterrupt.  The handlers found are
    put back on leaving.  Outside the main thread it does nothing.
    """

    def __init__(self):
        self.signal: str | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def agreed(self) -> bool:
        """Whether a signal has come to any of the processes, in all of which `signal` then has its name."""
        number = ranks.largest(0 if self.signal is None else signal.Signals[self.signal].value)
        if number:
            self.signal = signal.Signals(number).name
        return bool(number)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number).name
