"""The matrices of pooling, resizing and blur against torch's own operations."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.resampling import (
    Resampling,
    blur_matrix,
    border_distance,
    pool_matrix,
    resize_matrix,
)

SIDES = [(1, 1), (1, 5), (5, 1), (7, 7), (64, 32), (32, 64), (16, 32), (33, 32), (17, 40), (100, 7), (3, 256)]


@pytest.mark.parametrize(("height", "out_height"), SIDES)
@pytest.mark.parametrize(("width", "out_width"), [(9, 4), (4, 9)])
def test_resizing_is_torch_bilinear(height: int, out_height: int, width: int, out_width: int) -> None:
    """Two resizing matrices do to an image what F.interpolate does, anti-aliased."""
    image = torch.randn(2, 3, height, width)
    ours = Resampling(resize_matrix, (height, width), (out_height, out_width))(image)
    expected = F.interpolate(image, size=(out_height, out_width), mode="bilinear", antialias=True)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_multiplied_without_a_change_of_size() -> None:
    """The image itself comes back, both ways, in the precision of the matrices; one side that changes is a change."""
    image = torch.randn(2, 3, 5, 7)
    same, other = Resampling(resize_matrix, (5, 7), [5, 7]), Resampling(resize_matrix, (5, 7), (5, 8))
    assert same(image) is image
    assert same.adjoint(image) is image
    assert same(image.double()).dtype == torch.float32
    assert other(image).shape == (2, 3, 5, 8)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (2, 3), (7, 12), (33, 20)])
def test_pooling_is_torch_average_pooling(height: int, width: int, kernel_size: int) -> None:
    """Two pooling matrices do to an image what F.avg_pool2d does, borders averaged over what is there."""
    image = torch.randn(2, 3, height, width)
    ours = Resampling(pool_matrix, (height, width), (kernel_size, kernel_size))(image)
    expected = F.avg_pool2d(image, kernel_size, 1, kernel_size // 2, count_include_pad=False)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("size", [1, 2, 9, 40])
def test_blur_is_scipys(size: int, sigma: float) -> None:
    """A line is blurred as by SciPy, which mirrors it at the borders too."""
    line = torch.randn(size, dtype=torch.float64)
    expected = torch.from_numpy(gaussian_filter1d(line.numpy(), sigma, mode="reflect", truncate=8.0))
    torch.testing.assert_close(blur_matrix(size, sigma).double() @ line, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, -1.0])
def test_no_blur_without_width(sigma: float) -> None:
    """A standard deviation of 0 or less leaves the line as it is."""
    assert torch.equal(blur_matrix(5, sigma), torch.eye(5))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0, 9.0])
def test_blur_has_no_denormal_numbers(sigma: float) -> None:
    """Weights are 0 or at least a float's resolution, whose products with an image's values are normal numbers."""
    weights = blur_matrix(64, sigma)
    assert weights[weights > 0].min() >= torch.finfo(torch.float32).eps
    torch.testing.assert_close(weights.sum(1), torch.ones(64))


@pytest.mark.parametrize(("size_in", "size_out"), SIDES)
def test_rows_sum_to_one(size_in: int, size_out: int) -> None:
    """A constant image stays what it is, whatever the operation."""
    for matrix in (resize_matrix(size_in, size_out), pool_matrix(size_in, 3), blur_matrix(size_in, 2.0)):
        assert matrix.dtype == torch.float32
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix)), rtol=0, atol=1e-6)


def test_rows_and_columns_are_not_mixed_up() -> None:
    """The first matrix acts along the height and the second along the width, and the adjoint is autograd's."""
    image = torch.randn(1, 2, 5, 8, requires_grad=True)
    resampling = Resampling(torch.randn, (3, 4), (5, 8))
    ours = resampling(image)
    torch.testing.assert_close(ours, torch.einsum("ih,bchw,jw->bcij", resampling.rows, image, resampling.columns))
    gradient = torch.randn_like(ours)
    torch.testing.assert_close(resampling.adjoint(gradient), torch.autograd.grad(ours, image, gradient)[0])


def test_matrices_follow_the_model_but_are_not_saved() -> None:
    resampling = Resampling(resize_matrix, (5, 8), (3, 4))
    assert not resampling.state_dict()
    assert resampling.double().rows.dtype == torch.float64
    assert resampling(torch.ones(1, 5, 8)).dtype == torch.float64


def test_border_distance_is_that_to_the_nearest_side() -> None:
    """Each cell's distance is the least of those to the four sides."""
    rows, columns = np.indices((5, 7))
    expected = np.minimum.reduce([rows, 4 - rows, columns, 6 - columns])
    assert border_distance((5, 7)).numpy().tolist() == expected.tolist()
