"""The part `prior.energy` of a recipe."""

from typing import Literal

from pydantic import Field, model_validator

from hebmtool.recipe.part import Channels, Few, Part


class Energy(Part):
    """The networks f_i whose sum is F."""

    form: Literal["compact", "published"] = Field(
        "compact", description="this package's network, or the published one, which reads z and has no `readout`"
    )
    reads: Literal["z", "z+state"] = Field("z", description="'z': f_i(z_i), as published; 'z+state': also h_i and u_i")
    layers: list[int] | None = Field(
        None, min_length=1, description="layers that have an f_i (1 = bottom); none gives every layer one"
    )
    width: Channels = Field(64, description="channels")
    blocks: Few = Field(2, description="residual blocks")
    readout: Literal["sum", "strided"] = Field(
        "sum", description="the last map is summed over pixels, or halved down to 2x2 and read whole"
    )
    activation: Literal["silu", "leaky-relu"] = Field("silu", description="what stands between them")
    spectral_norm: bool = Field(
        True,
        description="spectral normalisation of every convolution (readouts are free; in the published form nothing is)",
    )

    @model_validator(mode="after")
    def _published_reads_z(self) -> "Energy":
        if self.form == "published" and self.reads != "z":
            raise ValueError(
                f"prior.energy.form is published, which reads z alone, but prior.energy.reads is {self.reads}; "
                "set it to z"
            )
        return self
