"""Fields that several settings and calls share, with their bounds: of sampling, and of images."""

from typing import Annotated

from pydantic import Field

MaxTokens = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
MAX_STOPS = 4  # strings that may end an answer

MaxBytes = Annotated[int, Field(ge=1, description="Largest encoded image, in bytes.")]
MaxPixels = Annotated[int, Field(ge=1, description="Largest image, in pixels; more is a decompression bomb.")]
