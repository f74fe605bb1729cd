"""The commands that README and the pages of docs/ show in indented blocks and in fences of bash."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("cd", "cp", "find", "git", "hebm", "mkdocs", "pip", "python", "torchrun", "uv")


def blocks(text: str) -> list[str]:
    """Indented blocks, and what stands in fences of bash; nothing of other fences."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = [line[4:] for line in rest.splitlines() if line.startswith("    ")]
    return ["\n".join(indented), *(body for word, body in found if word in ("bash", "sh", "console"))]


def commands(page: Path) -> list[str]:
    """Those of a page, in order: a line each, whole, variables in their places, without the words after #."""
    found, variables = [], {}
    for block in blocks(page.read_text("utf-8")):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            line = re.sub(r"\s+# .*$", "", line)
            if given := re.fullmatch(r'(\w+)="(.*)"', line):
                variables[given[1]] = given[2]
            elif line.split(" ")[0] in PROGRAMS:
                for name, value in variables.items():
                    line = re.sub(rf"\${name}\b", value, line)
                found.append(line.removesuffix(" ..."))
    return found
