"""An independent judge of labels: a small convolutional network trained on real images only.

It reads pixels and has never met the generator or its latents, so that the share of samples it assigns to the value
asked for says something about the samples.  Trained once per run and label, then kept in the run's folder.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hebmtool import data
from hebmtool.console import note, progress
from hebmtool.noise import derive_seed
from hebmtool.prior.labels import values_of
from hebmtool.recipe import Recipe
from hebmtool.run import checkpoint
from hebmtool.run.folder import Run

UPDATES, BATCH, LR, WIDTH, SIDE = 1500, 64, 2e-3, 24, 32


class Classifier(nn.Module):
    """uint8 images [N, C, H, W] -> logits [N, K].  Larger images are shrunk to 32x32 first."""

    def __init__(self, channels: int, values: int):
        super().__init__()

        def block(c_in: int, c_out: int) -> list[nn.Module]:
            return [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

        self.body = nn.Sequential(
            *block(channels, WIDTH),
            nn.MaxPool2d(2, ceil_mode=True),
            *block(WIDTH, 2 * WIDTH),
            nn.MaxPool2d(2, ceil_mode=True),
            *block(2 * WIDTH, 4 * WIDTH),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(16 * WIDTH, values),
        )

    def forward(self, images: Tensor) -> Tensor:
        x = images.float() / 127.5 - 1
        if max(x.shape[2:]) > SIDE:
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
        return self.body(x)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The likeliest value of each image, long [N] on the CPU."""
        device = next(self.parameters()).device
        return torch.cat([self(batch.to(device)).argmax(1).cpu() for batch in images.split(250)])


def trained(
    name: str, run: Run, recipe: Recipe, images: data.Images, test: data.Images, device: torch.device
) -> tuple[Classifier, float]:
    """The run's classifier for a label, trained on `images` if it is not there yet, and its accuracy on `test`."""
    y, values = values_of(name, images, recipe.data)
    path = run.classifier_path(name)
    if path.is_file():
        tensors, header = checkpoint.load(path, kind="classifier")
        if header.extra.get("values") == values and header.extra.get("made_of") == recipe.data.attributes.get(name):
            model = Classifier(images.shape[0], len(values))
            checkpoint.load_into(model, tensors, path)
            return model.to(device).eval(), checkpoint.extra(path, header, "accuracy")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(recipe.seed, "classifier", name))
        model = Classifier(images.shape[0], len(values)).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
        decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=UPDATES)
        batch = min(BATCH, len(images))
        with progress(f"classifier of {name}", UPDATES) as bar:
            for step in range(UPDATES):
                indices = data.batch_indices(len(images), batch, recipe.seed, step)
                loss = F.cross_entropy(model(images.batch(indices).to(device)), y[indices].to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                decay.step()
                bar.advance()
    model.eval()
    y_test, _ = values_of(name, test, recipe.data)
    found = torch.cat([model.predict(test.batch(part)) for part in torch.arange(len(test)).split(250)])
    accuracy = (found == y_test).float().mean().item()
    note(f"a classifier of {name}, trained on real images only, is right on {100 * accuracy:.1f}% of the test images")
    extra = {"values": values, "accuracy": accuracy, "made_of": recipe.data.attributes.get(name)}
    checkpoint.save(path, model.state_dict(), kind="classifier", recipe=recipe, step=UPDATES, extra=extra)
    return model, accuracy
