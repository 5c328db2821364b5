"""The size of the images, as a configuration gives it."""

Resolution = int | tuple[int, int]  # a side, or (height, width), in pixels


def image_size(resolution: Resolution) -> tuple[int, int]:
    """(height, width) in pixels. resolution: the side of a square, or (height, width).

    Raises ValueError for anything else.
    """
    sides = tuple(resolution) if isinstance(resolution, list | tuple) else (resolution, resolution)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(
            f"resolution={resolution!r} must be a side in pixels, or (height, width), for instance (512, 768)"
        )
    return sides
