"""What every part of a recipe is: keys that are checked, each a field with a default and a description."""

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    # Strict, so that `levels: yes` is a mistake and not the number 1.
    model_config = ConfigDict(extra="forbid", validate_assignment=True, strict=True, allow_inf_nan=False)
