"""Processes that tests start: on one thread, killed on the way out, and waited for long enough for a busy machine."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable

PATIENCE = 600.0
"""Seconds before a process counts as hung."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Child(subprocess.Popen):
    """A process at the head of a group of its own, so that `stop` also ends whatever it has started.

    stdout and stderr are piped, as text; `options` are Popen's, of which `env` is added to this process's.
    """

    def __init__(self, *command: object, env: dict[str, object] | None = None, **options):
        environment = os.environ | ONE_THREAD | {key: str(value) for key, value in (env or {}).items()}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        super().__init__([*map(str, command)], env=environment, start_new_session=True, **pipes | options)

    def finish(self, given: str | bytes | None = None) -> tuple[int, str, str]:
        """Wait for its end, `given` on its stdin; (exit status, stdout, stderr)."""
        out, err = self.communicate(given, timeout=PATIENCE)
        return self.returncode, out, err

    def until(self, so: Callable[[], object]) -> None:
        """Wait until `so()` holds, which must be before the process ends."""
        deadline = time.monotonic() + PATIENCE
        while not so():
            assert self.poll() is None, f"{self.args} ended with {self.returncode}: {self.communicate()[1]}"
            assert time.monotonic() < deadline, f"{self.args} is still at it after {PATIENCE:.0f} s"
            time.sleep(0.005)

    def stop(self) -> None:
        """Kill it and all of its group, which may be gone already."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()
