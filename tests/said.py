"""What a command says when something is wrong."""


def one_sentence(err: str) -> str:
    """The message, after checking that it is one line, from the command, without a traceback."""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("hebm: ") and "Traceback" not in err
    return lines[0]
