"""Types of flow parameters that the form of the Prefect UI can hold to before a run exists."""

from typing import Annotated

from pydantic import Field

__all__ = ["Count", "Duration", "SeriesName"]

SeriesName = Annotated[str, Field(pattern=r"^(spot|um):\S+$", examples=["um:DOGEUSDT"])]
Duration = Annotated[str, Field(pattern=r"^\d+(\.\d+)?[smhd]?$", examples=["90s", "15m", "24h", "7d"])]
Count = Annotated[int, Field(ge=1, le=500)]
