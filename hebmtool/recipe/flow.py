"""The part `flow` of a recipe."""

from typing import Literal

from pydantic import Field

from hebmtool.recipe.part import MANY, Part


class Flow(Part):
    """A latent of one layer: its flow prior, its top-down network, and inference by short-run Langevin dynamics, as in
    "A Tale of Two Latent Flows" (Xie et al. 2023, arXiv 2301.09300).  Read where `prior.kind` is flow, and all but what
    is of the flow itself where it is latent-ebm."""

    latent: int = Field(100, ge=2, le=2**16, description="dimensions of z")
    transforms: int = Field(8, ge=0, le=256, description="coupling layers; with 0 the prior is N(0, I)")
    coupling: Literal["affine", "spline"] = Field("affine", description="what each does to half of z")
    mixing: Literal["none", "linear"] = Field(
        "none",
        description="before each coupling: nothing, or an actnorm and an invertible linear map, as published",
    )
    hidden: int = Field(128, ge=1, le=2**14, description="width of the two hidden layers that tell it how")
    width: int = Field(
        64,
        ge=1,
        le=4096,
        description="channels of the network at half resolution; doubles at each halving, unless `even`",
    )
    even: bool = Field(False, description="as many channels at every resolution")
    first_map: int = Field(4, ge=2, le=64, description="sides of its first map are the image's, halved down to this")
    head: Literal["up", "conv"] = Field(
        "up", description="pixels: of a transposed convolution that doubles, or a 3x3 one at full resolution"
    )
    sigma: float = Field(0.3, gt=0, description="standard deviation of pixels, which reach from -1 to 1")
    steps: int = Field(20, ge=1, le=2**20, description="Langevin steps while learning")
    test_steps: int = Field(300, ge=1, le=2**20, description="Langevin steps afterwards")
    test_noise: bool = Field(
        True, description="whether those have noise; without it a chain climbs to a mode of p(z | x), as published"
    )
    step_size: float = Field(0.1, gt=0, description="s, their size")
    start: Literal["prior", "normal"] = Field(
        "prior",
        description="a chain starts from a draw of the flow, or of N(0, I), as published and always with latent-ebm",
    )
    warmup: int = Field(
        0, ge=0, le=MANY, description="updates in which chains start from N(0, I) whatever `start` says"
    )
    persistent: bool = Field(False, description="an image's chain goes on where it ended the last time")
