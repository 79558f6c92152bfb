"""Mean, standard deviation and color order of the pixels that a network was trained on."""

from __future__ import annotations

from typing import Literal

PixelStatistic = float | tuple[float, float, float]
"""Mean or std for pixels in [0, 1]: one number, or one per channel."""
ColorOrder = Literal["rgb", "bgr"]


def check_pixel_statistics(**statistics: PixelStatistic | None) -> None:
    """Check that means and standard deviations are for pixels in [0, 1].

    Raises:
        ValueError: a number is above 1 in absolute value, so it is for pixels in [0, 255].

    >>> check_pixel_statistics(mean=0.5, std=(0.2, 0.2, 0.2))
    """
    for name, value in statistics.items():
        if value is None:
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        if max(abs(number) for number in numbers) > 1:
            raise ValueError(
                f"{name} = {value}, must be for pixels in [0, 1]; divide values for pixels in "
                "[0, 255] by 255"
            )


def to_rgb(value: PixelStatistic, order: ColorOrder) -> PixelStatistic:
    """Convert statistics from a network's color order to RGB.

    >>> to_rgb((0.1, 0.2, 0.3), "bgr")
    (0.3, 0.2, 0.1)
    """
    return (value[2], value[1], value[0]) if isinstance(value, tuple) and order == "bgr" else value
