"""Fixed linear maps over image rows and columns, as matrices: pooling, resizing and Gaussian blur.

A separable operation on an image ``x`` is ``rows @ x @ columns.T``; its adjoint (vector-Jacobian product) is then
``rows.T @ g @ columns``, which is exact, needs no autograd and exports to any runtime as two matrix products.
"""

import torch
from torch.nn import functional as F  # noqa: N812


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
    """Return average pooling of stride 1 over a line of pixels, borders averaged over what is there, as a matrix.

    Args:
        size: Number of pixels, at least 1.
        kernel_size: Width of the window, odd.

    Returns:
        Weights of shape ``(size, size)``; each row sums to 1.
    """
    identity = torch.eye(size, dtype=torch.float32)[None, None]
    padding = (kernel_size // 2, 0)
    return F.avg_pool2d(identity, (kernel_size, 1), 1, padding, count_include_pad=False)[0, 0]


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
    # What is below a float's resolution changes no sum, but as a denormal number it makes products ten times slower.
    weights[weights < torch.finfo(torch.float32).eps * weights.sum(1, keepdim=True)] = 0
    return (weights / weights.sum(1, keepdim=True)).float()


def apply_separable(rows: torch.Tensor, image: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Apply one matrix along the rows and one along the columns of images.

    Args:
        rows: Matrix of shape ``(h_out, h_in)``.
        image: Images of shape ``(..., h_in, w_in)``.
        columns: Matrix of shape ``(w_out, w_in)``.

    Returns:
        Images of shape ``(..., h_out, w_out)``.
    """
    return rows @ image @ columns.T
