"""The feature grid: its forward map against torch, its adjoint against autograd, its statistics by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from anomalib_vae_attention.vae import FeatureGrid
from anomalib_vae_attention.vae.grid import LAYER_BALANCE, POOL_SIZES

side = st.integers(1, 19)
layer_size = st.tuples(side, side)


def make_grid(image_size: tuple[int, int], sizes: list[tuple[int, int]], channels: list[int]) -> FeatureGrid:
    """Make a grid for these layers, with random statistics."""
    grid = FeatureGrid(channels)
    grid.prepare(image_size, sizes)
    grid.mean.normal_()
    grid.std.uniform_(0.1, 3)
    return grid


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.tuples(st.integers(1, 90), st.integers(1, 90)), layer_size, layer_size)
def test_adjoint_is_the_gradient(image_size: tuple[int, int], first: tuple[int, int], second: tuple[int, int]) -> None:
    """The closed-form adjoint is autograd's vector-Jacobian product, for any sizes."""
    grid = make_grid(image_size, [first, second], [3, 2])
    layers = [torch.randn(2, 3, *first, requires_grad=True), torch.randn(2, 2, *second, requires_grad=True)]
    features = grid(layers)
    weight = torch.randn_like(features)
    expected = torch.autograd.grad(features, layers, weight)
    for ours, theirs in zip(grid.adjoint(weight), expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_forward_is_pooling_resizing_and_stacking() -> None:
    """The features are what torch's own pooling and resizing give, standardised: widths, and in each the layers."""
    sizes = [(21, 15), (5, 9)]
    grid = make_grid((83, 61), sizes, [3, 2])
    layers = [torch.randn(2, channels, *size) for channels, size in zip([3, 2], sizes, strict=True)]
    pooled = [
        F.avg_pool2d(layer, width, 1, width // 2, count_include_pad=False)
        for width, layer in itertools.product(POOL_SIZES, layers)
    ]
    raw = torch.cat([F.interpolate(layer, (10, 7), mode="bilinear", antialias=True) for layer in pooled], 1)
    torch.testing.assert_close(grid.stack(layers), raw, rtol=1e-5, atol=1e-5)
    expected = (raw - grid.mean.view(1, -1, 1, 1)) / grid.std.view(1, -1, 1, 1)
    torch.testing.assert_close(grid(layers), expected, rtol=1e-5, atol=1e-5)


def test_fit_standardises_and_balances_layers() -> None:
    """Fitted channels have zero mean, and a layer's share of the variance grows as the root of its channels."""
    channels = [4, 16]
    grid = FeatureGrid(channels)
    count = sum(grid.channels)
    rows = torch.randn(5000, count, dtype=torch.float64) @ torch.randn(count, count, dtype=torch.float64) + 3
    mean = rows.mean(0)
    covariance = torch.from_numpy(np.cov(rows.T.numpy(), bias=True))
    place_share = torch.linspace(0.1, 0.6, count, dtype=torch.float64)
    fitted = grid.fit(mean, covariance, place_share)
    standardised = grid.standardise(rows.float()[:, :, None, None]).double().flatten(1)
    torch.testing.assert_close(standardised.mean(0), torch.zeros(count, dtype=torch.float64), rtol=0, atol=1e-5)
    measured = torch.from_numpy(np.cov(standardised.T.numpy(), bias=True))
    torch.testing.assert_close(fitted, measured, rtol=1e-4, atol=1e-4)
    variance = fitted.diagonal()
    parts = variance.split(grid.channels)
    for part in parts:
        torch.testing.assert_close(part, part[:1].expand_as(part))
    # The finest width counts by its own share, in which a layer weighs as the balance says.
    weights = [len(part) ** (1 - LAYER_BALANCE) for part in parts[:2]]
    means = [float(part.mean()) for part in place_share.split(grid.channels)[:2]]
    share = np.average(means, weights=weights)
    torch.testing.assert_close(parts[0], share * parts[2])
    everything = [float(part.mean()) for part in place_share.split(grid.channels)]
    assert grid.explained_by_place(place_share) == pytest.approx(np.average(everything, weights=2 * weights))
    ratio = parts[1].sum() / parts[0].sum()
    assert float(ratio) == pytest.approx((16 / 4) ** (1 - LAYER_BALANCE))


def test_layers_of_a_homogeneous_texture_count_by_their_cells() -> None:
    """The finest width counts by the power of the metric, and a layer of a quarter of the cells half as much."""
    sizes = [(32, 32), (8, 8), (4, 4)]
    grid = make_grid((64, 64), sizes, [2, 2, 2])
    count = sum(grid.channels)
    moments = torch.zeros(count), torch.eye(count, dtype=torch.float64), torch.full((count,), 0.2)
    variance = [float(part[0]) for part in grid.fit(*moments, mahalanobis=1.0).diagonal().split(grid.channels)]
    assert variance == pytest.approx([1, 1, 0.25**LAYER_BALANCE] * 2)
    likely = [float(part[0]) for part in grid.fit(*moments, mahalanobis=0.6).diagonal().split(grid.channels)]
    coarse = 0.25 ** (0.6 * LAYER_BALANCE)
    assert likely == pytest.approx([0.6, 0.6, 0.6 * coarse, 1, 1, coarse])
    share = moments[2].clone()
    share[grid.channels[0] * 2 : grid.channels[0] * 3] = 1.0
    assert grid.explained_by_place(share, 1.0) < grid.explained_by_place(share)


def test_a_constant_channel_stays_finite() -> None:
    """A channel that never changes on normal images does not divide by zero."""
    grid = FeatureGrid([2, 1])
    covariance = torch.diag(torch.tensor([1.0, 0.0, -1e-20], dtype=torch.float64).repeat(len(POOL_SIZES)))
    count = len(covariance)
    fitted = grid.fit(torch.ones(count, dtype=torch.float64), covariance, torch.zeros(count))
    assert fitted.isfinite().all()
    assert grid.standardise(torch.full((1, count, 2, 2), 1.0)).eq(0).all()
    assert grid.standardise(torch.full((1, count, 2, 2), 2.0)).isfinite().all()


def test_layers_of_undoes_the_standardisation() -> None:
    """Constant layers come back as they were, at their own resolution."""
    sizes = [(12, 16), (3, 4)]
    grid = make_grid((48, 64), sizes, [3, 2])
    values = [torch.randn(2, channels, 1, 1) for channels in (3, 2)]
    layers = [value.expand(-1, -1, *size) for value, size in zip(values, sizes, strict=True)]
    for back, layer in zip(grid.layers_of(grid(layers).split(grid.channels, 1)), layers, strict=True):
        torch.testing.assert_close(back, layer, rtol=1e-5, atol=1e-5)


def test_other_sizes_build_other_matrices() -> None:
    """Layers of another size are resized to the grid of that size; the statistics stay."""
    grid = make_grid((64, 64), [(16, 16)], [3])
    mean = grid.mean.clone()
    assert grid([torch.randn(1, 3, 16, 16)]).shape == (1, 6, 8, 8)
    grid.prepare((96, 64), [(24, 16)])
    assert grid([torch.randn(1, 3, 24, 16)]).shape == (1, 6, 12, 8)
    assert torch.equal(grid.mean, mean)


def test_another_image_size_with_the_same_layer_sizes() -> None:
    """Images of another size get the grid of that size, also where the layers happen to be as large as before."""
    grid = make_grid((63, 63), [(16, 16)], [3])
    grid.prepare((64, 64), [(16, 16)])
    assert grid.grid_size == (8, 8)
    assert grid([torch.randn(1, 3, 16, 16)]).shape == (1, 6, 8, 8)
