"""What every block of settings is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A block of settings: unknown keys are refused, values do not change, attributes document."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
