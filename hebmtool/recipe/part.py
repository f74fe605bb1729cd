"""What every part of a recipe is: keys that are checked, each a field with a default and a description."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# Every whole number has an upper bound, so that what cannot be meant is told before it is built.
MANY = 10**9
Few = Annotated[int, Field(ge=1, le=64)]
Channels = Annotated[int, Field(ge=1, le=1024)]
# Of every image; true: one.
Draws = Annotated[bool | int, Field(ge=0, le=64)]
Updates = Annotated[int, Field(ge=1, le=MANY)]
# Of an optimizer: far above what ever converged, and within float32 however Adam scales it.
Rate = Annotated[float, Field(le=1e30)]
Workers = Annotated[
    int | None,
    Field(
        ge=0,
        le=256,
        description="processes of each that read images ahead where every visit decodes them (sets that take more than "
        "512 MB, random_crop); none: as many as suit the machine",
    ),
]


def _listed(words: Any) -> Any:
    return [words] if isinstance(words, str) else words


# One word stands for a list of it.
Names = Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=list[str] | str)]
Logger = Literal["csv", "tensorboard", "wandb"]
Loggers = Annotated[list[Logger], BeforeValidator(_listed, json_schema_input_type=list[Logger] | Logger)]


class Part(BaseModel):
    # Strict, so that `levels: yes` is a mistake and not the number 1.
    model_config = ConfigDict(extra="forbid", validate_assignment=True, strict=True, allow_inf_nan=False)
