"""What would be wrong on an accelerator, found without one: tensors of torch's `meta` device have a shape, a type and a
device, and no values.

Whatever reads a value of theirs raises.  Much else that would fail, or make an accelerator wait, torch passes over
there (a convolution by weights on the CPU, a copy to the device); `accelerated` raises for these too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")


class OnOneDevice(TorchDispatchMode):
    """Raises for an operation whose tensors, taken and given, are not all on one device.  A number on the CPU (of no
    dimension) may go into one elsewhere: it travels with the call."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        taken = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        found = function(*args, **(kwargs or {}))
        given = [a for a in tree_leaves(found) if isinstance(a, torch.Tensor)]
        devices = {a.device.type for a in taken if a.dim()} | {a.device.type for a in given}
        if len(devices) > 1:
            raise AssertionError(f"{function} goes from device to device: {', '.join(sorted(devices))}")
        return found


@contextmanager
def accelerated() -> Iterator[None]:
    """Within the block every operation stays on the device of its tensors."""
    with OnOneDevice():
        yield
