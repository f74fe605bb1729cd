"""Feature networks that are data: safetensors files whose header names an architecture of this list.

What such a file can do is be wrong: its tensors have the names and shapes of a network written here, and nothing in it
runs.  `architecture` adds one; a class of it is an `nn.Module`, uint8 [N, C, H, W] -> float [N, D], with `of`, which
builds it in the sizes of given tensors.

`python -m hebmtool.metrics.networks OLD.pt NEW.safetensors` converts a TorchScript file of one of these architectures,
of whose features the new file's are the same to the bit.  TorchScript runs code when it is read: convert only what
you would run.
"""

import json
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hebmtool import files
from hebmtool.errors import HebmError, did_you_mean

FORMAT = "hebmtool-features"
FORMAT_VERSION = 1

ARCHITECTURES: dict[str, type[nn.Module]] = {}
"""By the word in a file's header."""


def architecture(word: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Makes a class what files call by this word."""

    def added(network: type[nn.Module]) -> type[nn.Module]:
        ARCHITECTURES[word] = network
        return network

    return added


def _block(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


class _Added(nn.Module):
    """x + f(x), f being two blocks."""

    def __init__(self, width: int):
        super().__init__()
        self.f = nn.Sequential(_block(width, width), _block(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


@architecture("residual")
class Residual(nn.Module):
    """A small residual classifier without its last layer: uint8 [N, C, H, W] -> float32 [N, 4 width].

    Eight convolutions of 3x3 in widths w, 2w, 4w, the sides halved three times; what is left of the image is taken as
    half its mean plus half its maximum.  Any sides of at least 8.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))
        w = width
        self.body = nn.Sequential(
            *(_block(channels, w), _block(w, 2 * w), nn.MaxPool2d(2), _Added(2 * w)),
            *(_block(2 * w, 4 * w), nn.MaxPool2d(2), _block(4 * w, 4 * w), nn.MaxPool2d(2), _Added(4 * w)),
        )

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Residual":
        width, channels = tensors["body.0.0.weight"].shape[:2]
        return cls(channels, width)

    def forward(self, images: Tensor) -> Tensor:
        x = self.body((images.float() / 255 - self.mean) / self.std)
        return x.amax((2, 3)) * 0.5 + x.mean((2, 3)) * 0.5


def load(path: str | Path) -> nn.Module:
    """The network of a safetensors file, in evaluation mode.

    Raises:
        HebmError: it is none, or its architecture is unknown or does not fit its tensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise HebmError(f"{path} is not a safetensors file ({error}); {_WAYS}") from error
    word = header.get("architecture", "")
    if header.get("format") != FORMAT or not word:
        raise HebmError(f"{path} is a safetensors file, but not of a feature network; {_WAYS}")
    if header.get("format_version") != str(FORMAT_VERSION):
        raise HebmError(
            f"{path} has the format version {header.get('format_version')!r}, and this hebmtool reads "
            f"{FORMAT_VERSION}; upgrade hebmtool, or convert the network again"
        )
    if word not in ARCHITECTURES:
        raise HebmError(
            f"{path} holds a feature network of the architecture {word!r}; known are "
            f"{', '.join(ARCHITECTURES)}{did_you_mean(word, ARCHITECTURES)}"
        )
    return _filled(ARCHITECTURES[word], tensors, path)


_WAYS = "make one with `python -m hebmtool.metrics.networks OLD.pt NEW.safetensors`"


def save(network: nn.Module, path: str | Path) -> None:
    """Write a network of one of the architectures.  Raises `HebmError` when it cannot be written."""
    word = next(word for word, kind in ARCHITECTURES.items() if kind is type(network))
    header = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "architecture": word}
    tensors = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    files.write_bytes(Path(path), safetensors.torch.save(tensors, header))


def _filled(kind: type[nn.Module], tensors: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    """Raises HebmError where the tensors are not this architecture's."""
    try:
        with torch.device("meta"):  # so that nothing is allocated for what does not fit
            network = kind.of(tensors)
        wanted = {key: (tensor.dtype, tensor.shape) for key, tensor in network.state_dict().items()}
    except (KeyError, IndexError, ValueError, RuntimeError, TypeError) as error:
        wanted, reason = None, str(error)
    found = {key: (tensor.dtype, tensor.shape) for key, tensor in tensors.items()}
    if wanted != found:
        odd = reason if wanted is None else min(key for key, _ in set(found.items()) ^ set(wanted.items()))
        raise HebmError(
            f"{path} does not fit the architecture of its header: '{odd}' is missing, unknown, or of another shape or "
            f"type; {_WAYS}"
        )
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise HebmError(f"{path} holds '{key}' with values that are not finite; take another file")
    network.load_state_dict(dict(tensors), assign=True)
    return network.eval().requires_grad_(False)


def converted(path: str | Path) -> nn.Module:
    """The network of a TorchScript file, as one of the architectures; the file is run.

    Raises:
        HebmError: it is of none of them, or does not compute what they do.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, that TorchScript is old
            script = torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise HebmError(f"{path} is not a TorchScript network torch can load; there is nothing to convert") from error
    tensors = {key.removeprefix("n."): tensor.detach() for key, tensor in script.state_dict().items()}
    for kind in ARCHITECTURES.values():
        try:
            with torch.device("meta"):
                keys = kind.of(tensors).state_dict()
            network = _filled(kind, {key: tensors[key] for key in keys}, path)
        except (KeyError, IndexError, ValueError, HebmError):
            continue
        channels = next(iter(network.parameters())).shape[1]
        images = torch.randint(256, (16, channels, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            if torch.equal(network(images), script(images)):
                return network
    raise HebmError(
        f"{path} computes what none of the known architectures does ({', '.join(ARCHITECTURES)}); add its class as "
        "docs/extend.md says, or go on with the TorchScript file, named by yourself and trusted"
    )


def _convert(arguments: list[str]) -> str:
    if len(arguments) != 2 or not arguments[1].endswith(".safetensors"):
        raise HebmError("give a TorchScript file, and a name for the new one that ends in .safetensors")
    save(converted(arguments[0]), arguments[1])
    return json.dumps({"features": arguments[1], "sha256": files.digest(arguments[1])})


if __name__ == "__main__":
    try:
        print(_convert(sys.argv[1:]))
    except HebmError as error:
        sys.exit(f"networks: {error}")
