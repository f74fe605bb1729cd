"""What the parts of a recipe ask of one another.  Each function raises ValueError naming the keys that do not fit."""

from typing import TYPE_CHECKING

from hebmtool.recipe.mistakes import show

if TYPE_CHECKING:
    from hebmtool.recipe.schema import Generator, Recipe

WIDEST = 4096  # channels of a generator's widest map; a convolution of 3x3 between as many takes 0.6 GB


def widths(generator: "Generator") -> None:
    """Channels that double at each halving."""
    times = generator.scales - 1 + generator.preprocess_blocks
    for key in ("encoder_channels", "decoder_channels"):
        if (width := getattr(generator, key)) * 2**times > WIDEST:
            raise ValueError(
                f"generator.{key} is {width}, which {times} halvings double to {width * 2**times:,}, but a map has "
                f"at most {WIDEST:,} channels; set it to at most {WIDEST // 2**times}"
            )


def joint(recipe: "Recipe") -> None:
    """Learning the generator along with its prior."""
    config, kind = recipe.train_prior, recipe.prior.kind
    for key, given, why in (
        ("prior.kind", kind if recipe.one_stage else None, "it learns its generator anyway"),
        ("prior.whiten", recipe.prior.whiten, "latents that are still being learned cannot be whitened"),
        ("train_prior.precision", config.precision if config.precision != "float32" else None, "it is in float32"),
        ("train_prior.readjust_bn", config.readjust_bn, "it keeps the BatchNorm statistics of stage one"),
        ("train_prior.finish", config.finish, "it learns against draws of its prior anyway"),
    ):
        if config.joint and given:
            raise ValueError(f"train_prior.joint is true and {key} is {show(given)}: {why}; take one of them back")


def finish(recipe: "Recipe") -> None:
    """Where the draws are from that the last updates learn against."""
    config = recipe.train_prior
    if config.buffer and config.redraw > 1:
        raise ValueError(
            f"train_prior.buffer keeps chains that go on at every update, and train_prior.redraw is {config.redraw}: "
            "it lets updates share draws; remove one of them"
        )
    if 0 < config.buffer < config.batch_size:
        raise ValueError(
            f"train_prior.buffer is {config.buffer}, fewer chains than an update learns against; set it to 0, or to at "
            f"least train_prior.batch_size, {config.batch_size}"
        )


def stages(recipe: "Recipe") -> None:
    """What a model learned in one stage does that others do not, and the other way round."""
    data, prior = recipe.data, recipe.prior
    if recipe.one_stage and prior.labels:
        raise ValueError(
            f"prior.labels couples labels to the layers of a hierarchy, and prior.kind {prior.kind} has none; remove it"
        )
    if data.missing is not None and not recipe.one_stage:
        raise ValueError(
            f"data.missing needs prior.kind flow or latent-ebm, and it is {prior.kind}: an encoder reads whole images; "
            "remove data.missing, or change prior.kind"
        )
    if data.missing is not None and data.flip:
        raise ValueError("data.flip mirrors images and data.missing does not mirror their masks; set one of them")
    if recipe.one_stage:
        if recipe.train_prior.finish:
            raise ValueError(
                "train_prior.finish is for priors learned on a generator that is there, and prior.kind is "
                f"{prior.kind}; remove it"
            )
        if recipe.flow.persistent and data.flip:
            raise ValueError("data.flip mirrors images and flow.persistent goes on with their chains; set one of them")
        if recipe.train_prior.precision != "float32":
            raise ValueError(f"train_prior.precision is bf16, but a {prior.kind} is learned in float32; remove it")
