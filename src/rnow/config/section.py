"""What every section of config.yml is."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Section"]


class Section(BaseModel):
    """A part of config.yml: unknown keys, NaN, infinity are errors; it does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
