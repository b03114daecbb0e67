"""Fixed linear maps over the rows and columns of images, as matrices: pooling, resizing and Gaussian blur.

A separable map of an image ``x`` is ``rows @ x @ columns.T``. Its adjoint (vector-Jacobian product) is
``rows.T @ g @ columns``: exact, without autograd, and in any runtime two matrix products.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

MAP_SIGMA = 2.0
"""Standard deviation of the anomaly map's blur, in pixels of the input image."""


def resize_matrix(size_in: int, size_out: int) -> torch.Tensor:
    """Return bilinear resizing (anti-aliased when it shrinks) of a line of pixels as a matrix.

    Args:
        size_in: Number of pixels before resizing, at least 1.
        size_out: Number of pixels after resizing, at least 1.

    Returns:
        Weights of shape ``(size_out, size_in)``; each row sums to 1.
    """
    if size_in == size_out:
        return torch.eye(size_in, dtype=torch.float32)
    identity = torch.eye(size_in, dtype=torch.float32)[None, None]
    return F.interpolate(identity, size=(size_out, size_in), mode="bilinear", antialias=True)[0, 0]


def pool_matrix(size: int, kernel_size: int) -> torch.Tensor:
    """Return average pooling of stride 1 over a line of pixels as a matrix; windows end at the borders.

    Args:
        size: Number of pixels, at least 1.
        kernel_size: Width of the window, odd.

    Returns:
        Weights of shape ``(size, size)``; each row sums to 1.
    """
    identity = torch.eye(size, dtype=torch.float32)[None, None]
    padding = (kernel_size // 2, 0)
    return F.avg_pool2d(identity, (kernel_size, 1), 1, padding, count_include_pad=False)[0, 0]


def border_distance(size: Sequence[int]) -> torch.Tensor:
    """Return how many cells each cell of a grid is from the nearest border, of the shape of the grid; 0 at it."""
    rows, columns = (torch.minimum(torch.arange(side), side - 1 - torch.arange(side)) for side in size)
    return torch.minimum(rows[:, None], columns)


def at_border(weights: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return weights of the cells of a grid ``(h, w)``: those of the rings at the border, and 1 inside."""
    with_inside = torch.cat([weights, torch.ones_like(weights[:1])])
    return with_inside[border_distance(size).clamp(max=len(weights)).to(weights.device)]


def blur_matrix(size: int, sigma: float) -> torch.Tensor:
    """Return a Gaussian blur of a line of pixels, mirrored at the borders, as a matrix.

    Args:
        size: Number of pixels, at least 1.
        sigma: Standard deviation in pixels; 0 leaves the line as it is.

    Returns:
        Weights of shape ``(size, size)``; each row sums to 1.
    """
    if sigma <= 0:
        return torch.eye(size, dtype=torch.float32)
    position = torch.arange(size, dtype=torch.float64)
    images = 2 * size * torch.arange(-int(4 * sigma / size) - 1, int(4 * sigma / size) + 2)[:, None]
    mirrored = torch.cat([images + position, images - 1 - position])
    weights = torch.exp(-0.5 * ((position[:, None] - mirrored[:, None]) / sigma) ** 2).sum(0)
    # Weights below a float's resolution change no sum, but denormal numbers make products ten times slower.
    weights[weights < torch.finfo(torch.float32).eps * weights.sum(1, keepdim=True)] = 0
    return (weights / weights.sum(1, keepdim=True)).float()


class Resampling(nn.Module):
    """A fixed linear map over images: one matrix acts along the height, another along the width.

    The matrices follow the model to its device but are not saved: sizes determine them.

    Args:
        matrix: Gives the matrix for a line of pixels, of shape ``(side_out, side_in)``, from its lengths.
        sizes: Heights and widths; ``matrix`` gets the heights, then the widths.
    """

    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self, matrix: Callable[..., torch.Tensor], *sizes: Sequence[int]) -> None:
        super().__init__()
        # Without a change of size there is nothing to multiply by.
        self._changes = matrix is not resize_matrix or any(tuple(size) != tuple(sizes[0]) for size in sizes)
        rows, columns = (matrix(*sides) for sides in zip(*sizes, strict=True))
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images of shape ``(..., h_in, w_in)`` to ``(..., h_out, w_out)``, in the precision of the matrices."""
        image = image.to(self.rows.dtype)
        return self.rows @ image @ self.columns.T if self._changes else image

    def adjoint(self, gradient: torch.Tensor) -> torch.Tensor:
        """Carry a gradient of shape ``(..., h_out, w_out)`` back to the image, ``(..., h_in, w_in)``."""
        return self.rows.T @ gradient @ self.columns if self._changes else gradient


class SizedResamplings(nn.Module):
    """Base of the resamplings that a model needs for images of one size.

    For another size the model builds another set, and publishes it with one assignment when it is complete: threads
    that call the model at once never see half a set.

    Args:
        sizes: What the set is built for.
    """

    def __init__(self, *sizes: object) -> None:
        super().__init__()
        self.sizes = sizes

    def fits(self, *sizes: object) -> bool:
        """Return whether the set is for these sizes; one that was built while an export was traced has no numbers."""
        is_traced = any(type(matrix) is not torch.Tensor for matrix in self.buffers())
        return self.sizes == sizes and (torch.compiler.is_compiling() or not is_traced)


class MapResamplings(SizedResamplings):
    """The resamplings of maps for images of one size.

    Args:
        size: Height and width of the images in pixels.
        grid_size: Height and width of the grid in cells.
        layer_sizes: Height and width of each layer in its own cells.
        weights: What the map, and the score beyond it, are multiplied by in the rings of cells at the border.
    """

    map_weight: torch.Tensor
    score_weight: torch.Tensor

    def __init__(
        self,
        size: tuple[int, int],
        grid_size: tuple[int, int],
        layer_sizes: list[tuple[int, int]],
        weights: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        super().__init__(size, layer_sizes)

        def refine(side: int, cells: int, finest: int) -> torch.Tensor:
            return side / cells * resize_matrix(side, finest)

        def upsample(side: int, pixels: int) -> torch.Tensor:
            return blur_matrix(pixels, MAP_SIGMA) @ resize_matrix(side, pixels)

        finest = max(layer_sizes)
        self.refine_energy = Resampling(resize_matrix, grid_size, finest)
        self.refine = nn.ModuleList(Resampling(refine, layer_size, grid_size, finest) for layer_size in layer_sizes)
        self.upsample = Resampling(upsample, finest, size)
        for name, ring in zip(("map_weight", "score_weight"), weights, strict=True):
            self.register_buffer(name, self.refine_energy(at_border(ring, grid_size)), persistent=False)
