"""The embedded feature network for colour images: for Fréchet distances where nothing else is at hand.

A small residual classifier of CIFAR-10's training images (`hebmtool.metrics.networks.Residual` of width 16), its last
hidden layer taken as features.  Images of other sides are averaged down (or enlarged) to 32x32 first, so that detail
finer than that is not seen.  How it ranks known degradations beside a network four times as accurate a judge is in
docs/results.md; for anything final give Inception or a network of your own (`hebmtool.metrics.networks`).

`python -m hebmtool.metrics.colour CIFAR10.npz` trains it again and writes the file beside this one.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebmtool.metrics import networks

PATH = Path(__file__).with_name("colour.safetensors")
SIDE = 32
WIDTH = 16
EPOCHS = 6
BATCH = 128
PAD = 4  # pixels by which training images are shifted at most


class ColourFeatures(nn.Module):
    """uint8 [N, 3 or 1, H, W] -> float32 [N, 64]; a grey image is one whose three channels are the same."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        x = images.float().expand(-1, 3, -1, -1)
        return self.network(x if x.shape[2:] == (SIDE, SIDE) else F.adaptive_avg_pool2d(x, SIDE))


def load() -> ColourFeatures:
    """The trained network, in evaluation mode."""
    return ColourFeatures(networks.load(PATH)).eval().requires_grad_(False)


def train(images: Tensor, labels: Tensor, epochs: int = EPOCHS) -> tuple[networks.Residual, nn.Linear]:
    """Train from seed 0: cross-entropy, images flipped and shifted.  Returns the network and its last layer.

    Arguments:
        images: uint8 [N, 3, 32, 32].
        labels: classes, long [N].
    """
    torch.manual_seed(0)
    network, classes = networks.Residual(3, WIDTH), nn.Linear(4 * WIDTH, 10)
    x = images.float() / 255
    network.mean.copy_(x.mean((0, 2, 3), keepdim=True))
    network.std.copy_(x.std((0, 2, 3), keepdim=True))
    network.to(memory_format=torch.channels_last)
    parameters = [*network.parameters(), *classes.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    updates = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=epochs * updates)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images))[: updates * BATCH].view(updates, BATCH):
            padded = F.pad(images[batch], (PAD,) * 4)
            top, left = torch.randint(2 * PAD + 1, (2,)).tolist()
            shifted = padded[:, :, top : top + SIDE, left : left + SIDE]
            flipped = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, shifted.flip(3), shifted)
            features = network(flipped.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(classes(features), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / updates:.3f}", file=sys.stderr, flush=True)
    return network.eval().requires_grad_(False), classes.requires_grad_(False)


def main(path: str) -> None:
    """Train on the arrays x_train [N, 32, 32, 3], y_train of an .npz file, and print the accuracy on x_test, y_test."""
    with np.load(path) as arrays:
        x, y, x_test, y_test = (torch.from_numpy(arrays[key]) for key in ("x_train", "y_train", "x_test", "y_test"))
    network, classes = train(x.permute(0, 3, 1, 2).contiguous(), y.long())
    networks.save(network, PATH)
    parts = x_test.permute(0, 3, 1, 2).split(500)
    said = torch.cat([classes(network(part)).argmax(1) for part in parts])
    print(f"test accuracy {(said == y_test).float().mean():.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
