"""Field types shared by settings and HTTP requests, with their bounds."""

from typing import Annotated

from pydantic import Field

MaxTokens = Annotated[int, Field(ge=1, lt=2**31)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
MAX_STOPS = 4  # maximum number of stop strings

MaxBytes = Annotated[int, Field(ge=1, description="Maximum size of an encoded image, in bytes.")]
MaxPixels = Annotated[
    int, Field(ge=1, description="Maximum image size, in pixels: protects against decompression bombs.")
]
