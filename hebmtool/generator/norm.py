"""BatchNorm over a batch whose rows may lie in several processes: the statistics are those of all of them.

    y = (x - mean) / sqrt(var + eps) * weight + bias,        mean, var: over the rows that are computed at one time

Where they are computed in one process it is torch's own.  (torch's SyncBatchNorm runs on CUDA alone.)
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebmtool import ranks, rows

_again = False


@contextmanager
def computed_again() -> Iterator[None]:
    """Within the block batches are those that were seen before: the running statistics have them already."""
    global _again
    before, _again = _again, True
    try:
        yield
    finally:
        _again = before


class BatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, of which batches may lie in several processes."""

    def forward(self, x: Tensor) -> Tensor:
        part = rows.current()
        together = self.training and part is not None and len(part.beside) > 1
        if not together:
            if _again and self.training:
                # Statistics to throw away: without any, torch would keep other tensors than the first time.
                mean, var = self.running_mean.clone(), self.running_var.clone()
                return F.batch_norm(x, mean, var, self.weight, self.bias, True, 0.0, self.eps)
            return super().forward(x)
        pixels = x.shape[2] * x.shape[3]
        y, mean, var = _Together.apply(x, self.weight, self.bias, self.eps, [n * pixels for n in part.beside])
        if not _again:
            n = sum(part.beside) * pixels
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * (n / (n - 1)), momentum)
        return y


class _Together(torch.autograd.Function):
    """(x [N, C, H, W], weight [C], bias [C], eps, values per channel in every process) -> y, mean [C], var [C].

    Forward, the processes tell each other mean and squares about it; backward, the sums of the slope and of its product
    with the normalised x, through which every row acts on all.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, counts: list[int]):
        values = x.float()
        own = values.mean((0, 2, 3))
        squares = (values - own[:, None, None]).square().sum((0, 2, 3))
        means, squares = torch.stack(ranks.gathered(torch.stack([own, squares]))).unbind(1)
        n = torch.tensor(counts, dtype=values.dtype).to(x.device)[:, None]
        mean = (n * means).sum(0) / n.sum()
        var = (squares + n * (means - mean).square()).sum(0) / n.sum()
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.n = sum(counts)
        ctx.mark_non_differentiable(mean, var)
        normalised = (values - mean[:, None, None]) * scale[:, None, None]
        return (normalised * weight[:, None, None] + bias[:, None, None]).to(x.dtype), mean, var

    @staticmethod
    def backward(ctx, slope: Tensor, *_) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        slope = slope.float()
        normalised = (x.float() - mean[:, None, None]) * scale[:, None, None]
        by_bias, by_weight = slope.sum((0, 2, 3)), (slope * normalised).sum((0, 2, 3))
        of_all = ranks.total(torch.stack([by_bias, by_weight])) / ctx.n
        left = slope - of_all[0][:, None, None] - normalised * of_all[1][:, None, None]
        return ((scale * weight)[:, None, None] * left).to(x.dtype), by_weight, by_bias, None, None
