"""Processes that tests start: on one thread, killed on the way out, and waited for long enough for a busy machine."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

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


ONE_BY_ONE = """
import contextlib, io, json, os, sys
for arguments, environment in json.load(sys.stdin):
    before = dict(os.environ)
    os.environ.update(environment)
    sys.argv = ["hebm", *arguments]
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            from hebmtool.cli.main import main
            main()
        except SystemExit as stopped:
            status = stopped.code
    os.environ.clear()
    os.environ.update(before)
    out.flush()
    print(json.dumps([status, out.buffer.getvalue().decode(), err.getvalue(), "torch" in sys.modules]), flush=True)
"""


def one_by_one(
    commands: Sequence[tuple[Sequence[object], dict[str, object]]], **options
) -> list[tuple[int, str, str, bool]]:
    """What `hebm` makes of commands, one after another in a single process, which is cheaper than one for each: exit
    status, stdout, stderr, and whether torch has been imported by then.

    Arguments:
        commands: arguments of each, and what it has in its environment besides.
        options: of `Child`.
    """
    given = [([*map(str, words)], {key: str(value) for key, value in more.items()}) for words, more in commands]
    process = Child(sys.executable, "-c", ONE_BY_ONE, stdin=subprocess.PIPE, **options)
    try:
        status, out, err = process.finish(json.dumps(given))
    finally:
        process.stop()
    assert status == 0, err
    return [tuple(json.loads(line)) for line in out.splitlines()]
