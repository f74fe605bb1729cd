"""What `generator.cells` may say: a kind of residual cell, or a map from the eight roles to their ops."""

import re
from collections.abc import Mapping
from typing import Any

from hebmtool.errors import did_you_mean
from hebmtool.recipe.mistakes import show

CELL_ROLES = ("normal_enc", "down_enc", "normal_dec", "up_dec", "normal_pre", "down_pre", "normal_post", "up_post")
CELL_KINDS = ("res_bnswish", "res_mbconv", "mbconv_sep")
CELL_OP = r"res_bnswish|mconv_e[1-9]\d?k\d?[13579]g0"


def check_cells(cells: Any) -> None:
    """Raise ValueError where they may not."""
    if isinstance(cells, Mapping):
        _check_cell_map(cells)
    elif cells not in CELL_KINDS:
        raise ValueError(
            f"generator.cells is {show(cells)}, but must be one of {', '.join(CELL_KINDS)}, or a map from the "
            f"eight cell roles to their ops{did_you_mean(cells, CELL_KINDS)}"
        )


def _check_cell_map(cells: Mapping) -> None:
    for role in [*cells, *CELL_ROLES]:
        known = role in CELL_ROLES
        if not known or role not in cells:
            found, near = ("lacks", "") if known else ("has", did_you_mean(role, CELL_ROLES))
            raise ValueError(
                f"generator.cells {found} the role {show(role)}, but must have exactly the roles "
                f"{', '.join(CELL_ROLES)}{near}"
            )
    for role, ops in cells.items():
        listed = isinstance(ops, list) and len(ops) in (1, 2) and all(isinstance(op, str) for op in ops)
        if not listed or not all(re.fullmatch(CELL_OP, op) for op in ops):
            raise ValueError(
                f"generator.cells.{role} is {show(ops)}, but must be a list of one or two ops, each res_bnswish or "
                "mconv_e<expansion>k<kernel>g0 with a kernel of odd size, both below 100"
            )
