"""What went wrong on the user's side, said in one sentence."""

import difflib
from collections.abc import Iterable

NEAR = 0.65
"""Of a word and what may be meant: twice the letters they share, over all they have."""


class HebmError(Exception):
    """A mistake or condition the user can act on.

    The message is one sentence naming the thing, what was found, what is allowed and what to do.
    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 1
    everywhere = False
    """Whether every process of a launch raises it."""


class UsageError(HebmError):
    """The request itself is wrong (an unknown key, a word outside a list): exit code 2."""

    exit_code = 2


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest of `allowed`, or an empty string when none is near: most of its letters
    must stand there, in order."""
    near = difflib.get_close_matches(str(word), list(allowed), n=1, cutoff=NEAR)
    return f"; did you mean '{near[0]}'?" if near else ""


def not_installed(what: str, package: str, extra: str) -> HebmError:
    """What is said where a package is missing that only some uses need; `extra` of this package brings it."""
    return HebmError(f'{what} {package}, which is not installed; install it with `pip install "hebmtool[{extra}]"`')
