"""Recipes: one YAML file says what is trained on what, and how.

A recipe has seven parts, in the order data flows: `data`, `generator`, `train_vae` (stage one), `prior`, `flow` (which
replaces generator and stage one where `prior.kind` is flow or latent-ebm), `train_prior` (stage two), `evaluate`.
Every key has a default, is validated, and can be overridden (`part.key=value`).  The resolved recipe is written into
the run folder and into every checkpoint's header.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hebmtool.recipe import together
from hebmtool.recipe.cells import check_cells
from hebmtool.recipe.energy import Energy
from hebmtool.recipe.flow import Flow
from hebmtool.recipe.mistakes import show
from hebmtool.recipe.part import MANY, Channels, Draws, Few, Loggers, Names, Part, Rate, Updates, Workers
from hebmtool.recipe.words import CHAINS, KINDS, LIKELIHOODS, OBJECTIVES, ONE_STAGE, SOURCES

SKIP = "updates in all that may be passed over because their gradient is not finite, at most 3 in a row; 0: none"

NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"


class Data(Part):
    """Which images, and what is done to them before the generator sees them."""

    source: SOURCES.type = Field("digits", description="where the images come from")
    path: str | None = Field(None, description="folder, .npz or .npy file, or the root torchvision keeps data in")
    category: str = Field("church_outdoor", description="LSUN category")
    download: bool = Field(True, description="let torchvision download where it offers to")
    size: int | None = Field(None, ge=4, le=1024, description="resize images to this height and width (pixels)")
    crop: int | None = Field(None, ge=4, le=2**14, description="crop to this side (pixels) before resizing")
    crop_at: list[Annotated[int, Field(ge=0, le=2**16)]] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="top and left edge of that crop (pixels); none takes the middle",
    )
    random_crop: bool = Field(
        False, description="of an image resized by its short side, training sees a square at random, not the middle"
    )
    channels: Literal[1, 3] | None = Field(None, description="1 converts to grey, 3 to RGB; none keeps the source's")
    flip: bool = Field(False, description="random horizontal flips while training")
    bits: int = Field(8, ge=1, le=8, description="bits per channel kept (5 in NVAE's CelebA-HQ)")
    test_fraction: float = Field(0.1, gt=0, lt=1, description="share held out where the source has no test split")
    hold_out: Literal["hash", "order"] = Field(
        "hash", description="by a hash of their names (folders) or pixels (arrays), or by their order, as 0.1.0 did"
    )
    limit: int | None = Field(None, ge=1, le=MANY, description="use only the first this many training images")
    exclude: list[str] = Field(default_factory=list, description="classes left out of the training split")
    split: Literal["official", "pooled"] = Field(
        "official",
        description="the source's own training and test images; or all of them together, of which test_fraction of the "
        "classes not left out, and every image of those left out, are for testing (the anomaly protocol)",
    )
    attributes: dict[str, list[str]] = Field(
        default_factory=dict, description="binary attributes made of classes: name -> the classes that have it"
    )
    missing: float | str | None = Field(
        None,
        description="pixels training does not see: the share of each image's that is hidden at random (above 0, below "
        "1), or masks, a file or a folder (prior.kind flow and latent-ebm only)",
    )

    @model_validator(mode="after")
    def _crops_fit(self) -> "Data":
        if self.crop_at is not None and self.crop is None:
            raise ValueError("data.crop_at says where the crop lies, but there is none; set data.crop to its side")
        if self.random_crop and self.size is None:
            raise ValueError("data.random_crop cuts images that data.size has resized, and there is none; set it")
        if self.random_crop and self.missing is not None:
            raise ValueError(
                "data.random_crop moves images and data.missing does not move their masks; set one of them"
            )
        return self

    @field_validator("missing", mode="before")
    @classmethod
    def _share_or_masks(cls, missing: Any) -> Any:
        if isinstance(missing, bool | int) or (isinstance(missing, float) and not 0 < missing < 1):
            raise ValueError(
                f"data.missing is {show(missing)}, but must be null, the share of pixels that is hidden (a number "
                "above 0 and below 1), or a file or folder of masks"
            )
        return missing

    @field_validator("attributes", mode="before", json_schema_input_type=dict[str, list[str | int]])
    @classmethod
    def _classes_by_name(cls, attributes: Any) -> Any:
        # A class called 3 may be written as a number.
        if isinstance(attributes, Mapping):
            for name in attributes:
                if name == "class" or not re.fullmatch(r"\w[\w.-]*", str(name)):
                    raise ValueError(
                        f"data.attributes names an attribute {show(name)}, but names are letters, digits, '.', '_' "
                        "and '-', and 'class' is the class itself"
                    )
            return {k: [str(c) for c in v] if isinstance(v, list) else v for k, v in attributes.items()}
        return attributes

    @field_validator("exclude", mode="before", json_schema_input_type=list[str | int])
    @classmethod
    def _named_by_numbers(cls, exclude: Any) -> Any:
        return [str(c) for c in exclude] if isinstance(exclude, list) else exclude


class Generator(Part):
    """The multi-layer NVAE-style generator (Vahdat & Kautz 2020, arXiv 2007.03898)."""

    scales: int = Field(2, ge=1, le=5, description="latent scales, each half the resolution of the one below")
    layers_per_scale: Few = Field(3, description="latent layers at the finest scale, and at each unless `halve`")
    halve: bool = Field(False, description="halve the number of layers at each coarser scale")
    min_layers_per_scale: Few = Field(1, description="floor of that halving")
    latent_channels: Channels = Field(20, description="channels of every z_i")
    encoder_channels: int = Field(
        32, ge=2, le=1024, description="encoder width at full resolution; doubles at each halving"
    )
    decoder_channels: int = Field(
        32, ge=2, le=1024, description="decoder width at full resolution; doubles at each halving"
    )
    preprocess_blocks: int = Field(1, ge=0, le=6, description="halvings of the image before the finest latent scale")
    preprocess_cells: Few = Field(2, description="cells in each of them")
    postprocess_blocks: int = Field(1, ge=0, le=6, description="doublings after it; equal to preprocess_blocks")
    postprocess_cells: Few = Field(2, description="cells in each of them")
    encoder_cells: Few = Field(1, description="residual cells between encoder combiners")
    decoder_cells: Few = Field(1, description="residual cells between latent layers in the decoder")
    cells: str | dict[str, list[str]] = Field(
        "res_bnswish", description="kind of residual cell, or a map from the eight cell roles to their ops"
    )
    squeeze_excitation: bool = Field(True, description="squeeze-and-excitation at the end of every cell")
    residual_posterior: bool = Field(True, description="posterior parameters relative to the prior's")
    flows: int = Field(0, ge=0, le=4, description="pairs of shift-only autoregressive cells per layer's posterior")
    likelihood: LIKELIHOODS.type = Field("mixture", description="p(x|z)")
    sigma: float = Field(
        0.3, gt=0, description="standard deviation of pixels, which reach from -1 to 1 (fixed-gaussian)"
    )
    mixtures: Channels = Field(10, description="components of the mixture of discretised logistics")

    @field_validator("cells", mode="before")
    @classmethod
    def _known_cells(cls, cells: Any) -> Any:
        check_cells(cells)
        return cells

    @model_validator(mode="after")
    def _as_many_doublings_as_halvings(self) -> "Generator":
        together.widths(self)
        if self.preprocess_blocks != self.postprocess_blocks:
            raise ValueError(
                f"generator.preprocess_blocks is {self.preprocess_blocks} and generator.postprocess_blocks is "
                f"{self.postprocess_blocks}, but they must be equal; set both"
            )
        return self


class TrainVae(Part):
    """Stage one: the generator and its encoder, by the ELBO."""

    iterations: Updates = Field(20_000, description="updates")
    seed: int | None = Field(None, ge=0, le=2**32 - 1, description="seed of learning; none takes the recipe's")
    batch_size: int = Field(64, ge=2, le=2**16, description="images per update, over all processes")
    accumulate: int = Field(
        1,
        ge=1,
        le=2**16,
        description="turns in which a batch is computed, for one that memory does not hold; BatchNorm, free nats and "
        "KL balancing then see a turn's images at a time",
    )
    workers: Workers = None
    recompute: bool = Field(
        False, description="compute the generator's cells again for the gradient instead of keeping what they found"
    )
    lr: Rate = Field(1e-3, gt=0, description="Adamax learning rate at the start (cosine decay)")
    lr_min: Rate = Field(1e-4, ge=0, description="and at the end")
    lr_warmup: int = Field(200, ge=0, le=MANY, description="updates of linear warm-up")
    weight_decay: float = Field(3e-4, ge=0, description="Adamax's weight decay")
    kl_warmup: float = Field(0.3, ge=0, le=1, description="share of the updates over which the KL's weight rises to 1")
    kl_start: float = Field(1e-4, ge=0, le=1, description="weight of the KL at the start")
    kl_balance: bool = Field(True, description="NVAE's balancing of the layers' KLs during warm-up")
    free_nats: float = Field(0.0, ge=0, description="nats of KL per layer that cost nothing")
    spectral_weight: float = Field(1e-2, ge=0, description="weight of the spectral regularisation")
    spectral_start: float | None = Field(
        None, gt=0, description="and at the start, falling geometrically while the KL's weight rises; none: the same"
    )
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights")
    clip: float = Field(200.0, gt=0, description="gradient norm clip")
    skip: int = Field(0, ge=0, le=MANY, description=SKIP)
    precision: Literal["float32", "bf16"] = Field("float32", description="bf16 runs the forward pass under autocast")
    test_images: int | None = Field(1000, ge=1, le=MANY, description="test images of the final bound; null: all")
    log_every: Updates = Field(50, description="updates between lines of metrics.jsonl")
    sample_every: Updates = Field(1000, description="updates between sample grids")
    save_every: Updates = Field(1000, description="updates between checkpoints")


class Prior(Part):
    """Which prior over u, and how it is learned."""

    kind: KINDS.type = Field(
        "diffusion-ebm",
        description="the generator's own prior, one joint EBM, an EBM per noise level; or, learned jointly with a "
        "generator of one layer (see the part flow), a flow, or an EBM",
    )
    levels: int = Field(3, ge=2, le=1024, description="T, number of noise levels (diffusion-ebm)")
    level_power: float = Field(
        1.0,
        gt=0,
        description="levels are learned on as floor(T U^p), U uniform: above 1 favours those with little noise",
    )
    steps: int = Field(50, ge=1, le=2**20, description="K, Langevin steps per level")
    fast: list[Annotated[int, Field(ge=0, le=2**20)]] | None = Field(
        None,
        description="steps of each level when drawing fast, least noise first; none: K at the first, 0 at the others",
    )
    chain: CHAINS.type = Field(
        "langevin", description="'langevin' as published; 'unscaled' the joint EBM's; 'hmc' exact"
    )
    eta: float = Field(3e-5, gt=0, description="step size of the published two")
    h: float = Field(0.3, gt=0, le=30, description="step size of the preconditioned chain")
    theta: float = Field(0.5, gt=0, lt=1.6, description="step of the underdamped chain (radians); hmc's adapt from it")
    persistence: float = Field(
        0.6, ge=0, lt=1, description="part of the momentum that survives a step of the underdamped chain"
    )
    conditional: bool = Field(False, description="hmc draws level 0, too, given u_1; false: from p(u_0) itself")
    renew: float = Field(
        0.0, ge=0, le=1, description="share of u that hmc draws anew, and tests, before every move; 0 for no such jumps"
    )
    objective: OBJECTIVES.type = Field(
        "recovery",
        description="recovery likelihood, (conditional) noise-contrastive estimation, denoising score matching, or "
        "telescoping ratios of adjacent noise levels",
    )
    copies: Few = Field(1, description="noisier copies that conditional contrast holds against each posterior draw")
    whiten: Draws = Field(
        False,
        description="take the posterior's mean and covariance, by so many draws of each image (true: 1), out of u "
        "first, so that F learns what a Gaussian cannot know; for up to 16,384 latent dimensions",
    )
    penalty: float = Field(0.0, ge=0, description="weight of the penalty on F^2")
    margin: float = Field(
        0.0, ge=0, description="nats a negative may fall below its positive before the push turns round; 0: never"
    )
    energy: Energy = Field(default_factory=Energy, description="the networks f_i whose sum is F")
    labels: Names = Field(
        default_factory=list, description="labels to couple: class, or names of attributes; one word or a list"
    )
    label_layers: list[int] | None = Field(
        None, min_length=1, description="layers coupled to labels (1 = bottom); none couples all"
    )

    @model_validator(mode="after")
    def _fast_fits(self) -> "Prior":
        if self.fast is not None and len(self.fast) != self.levels:
            raise ValueError(
                f"prior.fast is {self.fast}, but must have one number of steps for each of the {self.levels} levels"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> "Prior":
        levels = {"score-matching": "match; use recovery", "telescope": "take the ratios of; use nce"}
        if self.objective in levels and self.kind in ("ebm", "latent-ebm"):
            raise ValueError(
                f"prior.objective is {self.objective}, but the {self.kind} kind has no noise levels to "
                f"{levels[self.objective]}"
            )
        return self

    @model_validator(mode="after")
    def _maps_are_there(self) -> "Prior":
        if self.kind != "latent-ebm":
            return self
        for key, given, plain in (
            ("whiten", self.whiten, False),
            ("energy.form", self.energy.form, "compact"),
            ("energy.layers", self.energy.layers, None),
            ("energy.reads", self.energy.reads, "z"),
            ("energy.readout", self.energy.readout, "sum"),
        ):
            if given != plain:
                raise ValueError(
                    f"prior.{key} is {show(given)}, but the latent-ebm kind has one vector of latents, learned with "
                    "its generator, and no maps; remove it"
                )
        return self


Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainPrior(Part):
    """Stage two: the prior, generator and encoder frozen; or a prior and its network of one layer together."""

    iterations: Updates = Field(5_000, description="updates")
    seed: int | None = Field(
        None, ge=0, le=2**32 - 1, description="seed of learning; none takes the recipe's, which the generator has"
    )
    batch_size: int = Field(64, ge=1, le=2**16, description="images per update, over all processes")
    accumulate: int = Field(
        1, ge=1, le=2**16, description="turns in which a batch is computed, for one that memory does not hold"
    )
    workers: Workers = None
    lr: Rate = Field(4e-5, gt=0, description="Adam learning rate")
    lr_decay: float = Field(1.0, gt=0, le=1, description="factor on the learning rate per epoch")
    lr_staircase: bool = Field(False, description="the rate falls at the end of an epoch, not all through it")
    lr_warmup: int = Field(0, ge=0, le=MANY, description="updates of linear warm-up")
    flip: bool | None = Field(None, description="random horizontal flips in stage two; none does as data.flip says")
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999),
        strict=False,  # a YAML list is not a tuple
        description="Adam's averaging coefficients",
    )
    finish: float = Field(
        0.0, ge=0, lt=1, description="share of the updates, the last, that learn against the prior's own draws (by hmc)"
    )
    redraw: int = Field(
        1, ge=1, le=1000, description="updates of the finish that learn against the same draws, while they count"
    )
    buffer: int = Field(0, ge=0, le=2**20, description="chains that the finish keeps and carries on; 0: none")
    fresh: float = Field(0.1, gt=0, le=1, description="share of its updates that draw anew where chains are kept")
    joint: bool = Field(
        False, description="learn generator and encoder along with an energy-based prior, from where stage one ended"
    )
    generator_lr: Rate = Field(
        1e-4, gt=0, description="Adam learning rate of these two, or of a latent-ebm's generator"
    )
    weight_decay: float = Field(3e-5, ge=0, description="Adam's weight decay")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights")
    clip: float = Field(100.0, gt=0, description="gradient norm clip")
    skip: int = Field(0, ge=0, le=MANY, description=SKIP)
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="of generator and energies while learning; bf16 keeps parameters and latents in float32"
    )
    label_iterations: Updates = Field(2000, description="updates per label of prior.labels")
    label_lr: Rate = Field(1e-3, gt=0, description="Adam learning rate for them")
    readjust_bn: int = Field(
        0, ge=0, le=2**20, description="re-estimate BatchNorm statistics on this many generated batches"
    )
    readjust_temperature: float = Field(1.0, gt=0, description="standard deviation of u in those batches")
    log_every: Updates = Field(20, description="updates between lines of metrics.jsonl")
    sample_every: Updates = Field(500, description="updates between sample grids")
    save_every: Updates = Field(500, description="updates between checkpoints")


class Evaluate(Part):
    """The prior-hole closure printed at the end of stage two."""

    samples: int = Field(1000, ge=2, le=2**24, description="images per set")
    pixels: Literal["mean", "sample"] = Field(
        "mean", description="what of p(x|z) is compared: its mean, or a draw, as in the published code"
    )
    features: str | None = Field(None, description="feature network, a safetensors file; none uses an embedded one")


class Recipe(Part):
    """All parts. `load` and `from_dict` report mistakes in the user's words; the constructor in pydantic's."""

    name: str = Field(
        "run",
        pattern=f"^{NAME}$",
        description="names the run folder: letters, digits, '.', '_' and '-', beginning with none of '.' and '-'",
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of every random draw")
    data: Data = Field(default_factory=Data, description="which images")
    generator: Generator = Field(default_factory=Generator, description="the multi-layer generator")
    train_vae: TrainVae = Field(default_factory=TrainVae, description="stage one")
    prior: Prior = Field(default_factory=Prior, description="the prior over u")
    flow: Flow = Field(default_factory=Flow, description="the latent of one layer, how it is inferred, and its flow")
    train_prior: TrainPrior = Field(default_factory=TrainPrior, description="stage two")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="the figures at the end of stage two")
    loggers: Loggers = Field(
        default_factory=list, description="what follows metrics.jsonl beside it; one word or a list"
    )

    @property
    def prior_seed(self) -> int:
        """Seed of stage two."""
        return self.seed if self.train_prior.seed is None else self.train_prior.seed

    @property
    def prior_data(self) -> Data:
        """`data` as stage two reads it."""
        flip = self.train_prior.flip
        return self.data if flip is None else self.data.model_copy(update={"flip": flip})

    @property
    def one_stage(self) -> bool:
        """Whether prior and generator are learned together, in stage two; there is no stage one then."""
        return self.prior.kind in ONE_STAGE

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        together.joint(self)
        together.finish(self)
        together.stages(self)
        return self
