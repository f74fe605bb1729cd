"""Runs on a hub: "hf://user/name" or "hf://user/name@revision" names one, as a folder or a name of one here does.

Files are kept where huggingface_hub keeps them; what is there already is not fetched again, and without a network the
revision fetched last is taken.  Only what a run is made of is fetched: safetensors, YAML, JSON, and its card.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hebmtool.errors import HebmError, UsageError, not_installed

SCHEME = "hf://"
FETCHED = ["*.safetensors", "recipe.yaml", "figures.json", "README.md", "*.png"]


def is_address(name: object) -> bool:
    return isinstance(name, str) and name.startswith(SCHEME)


def parse(address: str) -> tuple[str, str | None]:
    """(user/name, revision or None) of "hf://user/name@revision"; the scheme may be left out.

    Raises UsageError when it is no such address.
    """
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", address.removeprefix(SCHEME))
    if found is None:
        raise UsageError(f"'{address}' names no run on a hub; it is user/name, or user/name@revision")
    return found[1], found[2]


def pull(address: str) -> Path:
    """The folder of the run of that address, fetched where it is not here yet.

    Raises:
        UsageError: it is no address.
        HebmError: huggingface_hub is not installed, there is no such run, or the hub does not answer.
    """
    name, revision = parse(address)
    hub = client()
    with told(name):
        folder = Path(hub.snapshot_download(name, revision=revision, allow_patterns=FETCHED))
    if not (folder / "recipe.yaml").is_file():
        raise HebmError(f"{SCHEME}{name} holds no run: it has no recipe.yaml; name a repository that was pushed")
    return folder


def push(folder: Path, address: str, private: bool) -> str:
    """Upload what is in the folder to user/name, made where it is not there yet; where it can be looked at.

    Raises as `pull` does, and HebmError without a token.
    """
    name, revision = parse(address)
    hub = client()
    with told(name):
        api = hub.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message="A run of hebmtool")
    return f"{api.endpoint}/{name}"


def client():
    """huggingface_hub, without its bars where there is no terminal.  Raises HebmError when it is not installed."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        raise not_installed("runs on a hub need", "huggingface_hub", "hub") from None
    disable_progress_bars()
    return huggingface_hub


@contextmanager
def told(name: str) -> Iterator[None]:
    """What goes wrong on the way, in a sentence."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise HebmError(f"the hub wants to know who asks for {name}; run `hf auth login`, or set HF_TOKEN") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise HebmError(
            f"there is no run {SCHEME}{name} that you may read, or not at that revision; check the name, or log in "
            "with `hf auth login`"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise HebmError(
            f"the hub cannot be reached and {SCHEME}{name} has not been fetched before; try again with a network"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        why = "the token given may not do that" if status in (401, 403) else f"it answered {status}"
        raise HebmError(f"the hub refuses {name}: {why}; check the name and HF_TOKEN, or try again later") from error
    except (OSError, ValueError) as error:
        raise HebmError(f"{name} could not be exchanged with the hub ({error}); try again later") from error
    except Exception as error:
        # The client's own: of requests, httpx or whatever it speaks with.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpcore", "requests", "huggingface_hub"):
            raise
        raise HebmError(f"the hub cannot be reached ({error}); try again with a network") from error
