"""The embedded feature network: for Fréchet distances between small grey images where nothing else is at hand.

A convolutional classifier of scikit-learn's handwritten digits (1,797 images of 8x8, all of them used), its last
hidden layer taken as features.  Images are averaged down (or enlarged) to 8x8 first.  What it measures is therefore
digit-like shape at that resolution, and only that: for anything else give a network of your own
(`hebmtool.metrics.networks`).

`python -m hebmtool.metrics.embedded` trains it again and writes the file beside this one.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PATH = Path(__file__).with_name("embedded.safetensors")
SIDE = 8
FEATURES = 32


class EmbeddedFeatures(nn.Module):
    """uint8 [N, 1, H, W] -> float32 [N, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)])
        self.hidden = nn.Linear(32 * 16, FEATURES)
        self.classes = nn.Linear(FEATURES, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(images.float() / 255, SIDE)
        x = F.relu(self.convs[0](x))
        x = F.max_pool2d(F.relu(self.convs[1](x)), 2)
        return F.relu(self.hidden(x.flatten(1)))


def load() -> EmbeddedFeatures:
    """The trained network, in evaluation mode."""
    network = EmbeddedFeatures()
    network.load_state_dict(load_file(PATH))
    return network.eval().requires_grad_(False)


def train(updates: int = 1500) -> EmbeddedFeatures:
    """Train from seed 0: cross-entropy, images shifted by up to one pixel."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().mul(255 / 16).round()[:, None]
    labels = torch.from_numpy(digits.target).long()
    torch.manual_seed(0)
    network = EmbeddedFeatures()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        batch = torch.randint(len(images), (128,))
        dx, dy = torch.randint(-1, 2, (2,)).tolist()
        x = F.dropout(images[batch].roll((dy, dx), (2, 3)), 0.1)
        loss = F.cross_entropy(network.classes(F.dropout(network(x), 0.2)), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


if __name__ == "__main__":
    save_file(train().state_dict(), PATH)
