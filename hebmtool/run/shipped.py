"""Trained runs that come with the package: opened by their names wherever no run here has that name.

hebmtool/models/NAME/ holds what `hebmtool.export` made of a run.  It is copied to NAME-shipped in the folder of runs
the first time it is opened, so that what is drawn and measured of it stands where other runs have theirs.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from hebmtool.errors import HebmError

FOLDER = Path(__file__).parent.parent / "models"


def names() -> list[str]:
    return sorted(path.parent.name for path in FOLDER.glob("*/recipe.yaml"))


def unpack(name: str, root: Path) -> Path:
    """The copy of the shipped run of this name, below `root`.  Raises HebmError when it cannot be made."""
    copy = root / f"{name}-shipped"
    if (copy / "recipe.yaml").is_file():
        return copy
    try:
        root.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{copy.name}.", dir=root))
        try:
            # Beside its name, and moved there whole; with the times it has, by which it is not the run trained last.
            shutil.copytree(FOLDER / name, made, dirs_exist_ok=True)
            made.chmod(0o755)
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.rename(made, copy)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise HebmError(
            f"the run '{name}' comes with the package, and cannot be copied to {copy}: {error.strerror or error}; "
            "choose another folder of runs"
        ) from error
    return copy
