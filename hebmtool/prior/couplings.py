"""The couplings of a flow prior: zuko's, imported where there is such a prior (`hebmtool.prior.flow`)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.distributions import Transform
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.transforms import CouplingTransform, MonotonicAffineTransform, MonotonicRQSTransform

BINS = 8
COUPLINGS = {
    "affine": {"univariate": MonotonicAffineTransform, "shapes": [(), ()]},
    "spline": {"univariate": MonotonicRQSTransform, "shapes": [(BINS,), (BINS,), (BINS - 1,)]},
}


class Halves(CouplingTransform):
    """zuko's, with the halves' coordinates as given: it looks for them in the mask anew at each call, which makes an
    accelerator wait."""

    def __init__(self, meta: Callable[[Tensor], Transform], idx_a: Tensor, idx_b: Tensor):
        Transform.__init__(self)
        self.meta, self.idx_a, self.idx_b = meta, idx_a, idx_b


class Coupling(GeneralCouplingTransform):
    """zuko's, for as many kept coordinates as the mask had when it was made; which they are may be loaded."""

    def __init__(self, features: int, mask: Tensor, **keys):
        super().__init__(features, mask=mask, **keys)
        self.kept = int(mask.sum())

    def forward(self, c: Tensor | None = None) -> CouplingTransform:
        order = (~self.mask).int().argsort(stable=True)
        return Halves(partial(self.meta, c), order[: self.kept], order[self.kept :])
