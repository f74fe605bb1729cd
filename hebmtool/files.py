"""Files that are whole under their own name, whatever happens while they are written; and digests of them.

What is written stands beside its target until it is all there, and is then moved over it; a line that is appended
either stands there whole or not at all.  On the disk too, when writing returns, is what took work to make: checkpoints,
figures, single pictures.  The many files of one set are left to the system.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from hebmtool import ranks
from hebmtool.errors import HebmError


def digest(path: str | Path) -> str:
    """A digest of the file's content: which weights they are.  Raises `HebmError` when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise HebmError(f"could not read {path}: {error.strerror or error}") from error


def regular(path: str | Path) -> Path:
    """The path, of a file that can be read to its end.  Raises OSError where it is none: a FIFO would be waited for."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return Path(path)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in one move.  Raises `HebmError` as `write_bytes` does."""
    write_bytes(Path(path), text.encode())


def append_line(path: str | Path, text: str) -> None:
    """Append `text` (no newline in it) to `path` as a line of its own, even after a line cut short by a crash.

    Raises `HebmError` when it cannot be written; the file then ends where it ended.
    """
    if not ranks.is_first():
        return
    path, before = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            line = text.encode() + b"\n"
            if before:
                file.seek(before - 1)
                line = line if file.read(1) == b"\n" else b"\n" + line
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        if before is not None:
            with contextlib.suppress(OSError):
                os.truncate(path, before)
        raise _unwritable(path, len(text), error) from error


def claim(path: Path) -> Callable[[], None]:
    """Make a path this process's to write, until what is returned is called or the process ends; a folder is held
    itself, a file by `.NAME.lock` beside it.

    Raises `HebmError` when another process has it.  Where the filesystem has no locks nothing is held.
    """
    beside = None if path.is_dir() else path.with_name(f".{path.name}.lock")
    while True:
        try:
            held = os.open(beside or path, os.O_RDONLY if beside is None else os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return lambda: None
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(held)
            raise HebmError(f"another process is writing {path}; wait for it, or choose another place") from error
        except OSError:
            os.close(held)
            return lambda: None
        try:
            if beside is None or os.path.samestat(os.fstat(held), os.stat(beside)):
                break
        except FileNotFoundError:
            pass
        os.close(held)  # who had it has just taken the name away

    def release() -> None:
        if beside is not None:
            beside.unlink(missing_ok=True)
        os.close(held)

    return release


def link_over(source: Path, target: Path) -> None:
    """Give a file a second name, in one move, whatever stands there: neither is ever missing.  Where the filesystem has
    no such links it is copied.

    Raises `HebmError` as `write_bytes` does.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
        # Two names of one file are nothing to rename to POSIX, which leaves both.
        temporary.unlink(missing_ok=True)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise _unwritable(target, source.stat().st_size, error) from error


def write_bytes(path: str | Path, *parts: bytes | memoryview, durable: bool = True, by_any: bool = False) -> None:
    """Write the parts, one after another, beside `path`, then rename: whatever happens to the process, `path` holds the
    old content or all of the new.

    Arguments:
        durable: whether it is on the disk on return, so that this holds when the machine stops, too.  Of a set of many
            files, which can be made again, it takes longer than they do.
        by_any: whether any of several processes may write it, and not the first alone.

    Raises `HebmError` when it cannot be written; the temporary is removed.
    """
    if not (by_any or ranks.is_first()):
        return
    path = Path(path)
    # The process id keeps two writers apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            for part in parts:
                file.write(part)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise _unwritable(path, sum(map(len, parts)), error) from error
        raise
    if durable:
        _sync(path.parent)


def _sync(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some network filesystems cannot sync a folder; the file itself is safe
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _unwritable(path: Path, size: int, error: OSError) -> HebmError:
    intact, again = "", "rerun"
    if path.exists():
        checkpoint = path.suffix == ".safetensors"
        intact = f"; the previous {'checkpoint' if checkpoint else 'file'} is intact"
        again = "resume" if checkpoint else "rerun"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        reason = f"no space left (needs {size / 2**20:.1f} MiB, {free / 2**20:.1f} MiB free)"
        return HebmError(f"could not save {path}: {reason}{intact}; free some space and {again}")
    return HebmError(f"could not save {path}: {error.strerror or error}{intact}; make it writable and {again}")
