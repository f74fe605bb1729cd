"""Whitened latents: the affine map that takes the posterior's mean and covariance out of u."""

import hashlib

import torch
from torch import Tensor, nn


class Whitening(nn.Module):
    """The affine map u = m + A w.

    A is lower triangular, top layer first, so that a layer's u depends on its own w and on those of layers above, as z
    does on u: layers can be held and drawn again in w as they can in u.

    Arguments:
        mean: m, [D].
        factor: A, [D, D], lower triangular with a positive diagonal.
    """

    def __init__(self, mean: Tensor, factor: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)
        # In the layout it is read back in from a file: a product of another one differs in its last bit.
        self.register_buffer("factor", factor.contiguous())

    @classmethod
    def identity(cls, D: int) -> "Whitening":
        """The one that changes nothing."""
        return cls(torch.zeros(D), torch.eye(D))

    def to_u(self, w: Tensor) -> Tensor:
        """[N, d] -> [N, d], the first d <= D dimensions."""
        d = w.shape[1]
        return self.mean[:d] + w @ self.factor[:d, :d].T

    def to_w(self, u: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        return torch.linalg.solve_triangular(self.factor, (u - self.mean).T, upper=False).T

    @property
    def log_scale(self) -> Tensor:
        """log |du_i / dw_i| of every dimension, [D]."""
        return self.factor.diagonal().log()

    @property
    def digest(self) -> str:
        """SHA-256 of m and A."""
        return hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in (self.mean, self.factor))).hexdigest()

    @property
    def nats(self) -> float:
        """KL(N(m, A A^T) || N(0, I)): the part of the prior hole that a mean and a covariance know of."""
        square = self.factor.square().sum() + self.mean.square().sum() - len(self.mean)
        return (0.5 * square - self.log_scale.sum()).item()
