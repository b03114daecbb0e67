"""The training of one image VAE on images that wait in the device's memory, an epoch at a time."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from anomalib_vae_attention import VaeAttention
from anomalib_vae_attention.image_vae.whitened_start import start_from

from .augmentation import Augmentation

if TYPE_CHECKING:
    from anomalib_vae_attention.fit.gradient_descent import GradientFit
    from anomalib_vae_attention.image_vae.model import ImageVaeModel

PRECISIONS = ("mixed", "single")
"""Of the products of both networks in training; ``"mixed"`` is TF32 for the encoder and bf16 for the decoder.

With bf16 throughout, the encoder's features lose what tells one normal image from another: after 12 steps on bottle at
256x256 its gradients had a cosine of .95 with those in single precision, and posterior means were off by a third of the
posteriors' standard deviation. With bf16 for the decoder alone, gradients differed by 2.5 % (encoder) and .6 %
(decoder).
"""


def set_convolutions(*, benchmark: bool, tf32: bool) -> None:
    """Say how GPUs do convolutions in single precision from now on: tried out for the fastest way, in TF32."""
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.allow_tf32 = tf32


class Category(NamedTuple):
    """The images of a category, on the device.

    Attributes:
        name: Its name.
        normal: Training images without augmentation, in batches of shape ``(B, C, H, W)``.
        test: Batches of test images with their truth.
        batch_size: Images in a training batch.
    """

    name: str
    normal: list[torch.Tensor]
    test: list[Any]
    batch_size: int


class Run:
    """The training of one VAE, from its start. On a GPU an epoch is a CUDA graph, on a stream of the run's own.

    Args:
        module: The model, untrained, on the device to train on.
        data: The images.
        augmentation: What is done to training images.
        seed: Seed of the order of images, of augmentations and of the noise on latents.
        precision: One of :data:`PRECISIONS`; weights, latents, losses and optimiser stay in single precision.

    Attributes:
        totals: Negative log-likelihood and KL divergence of the last epoch, in nats, summed over its images, ``(2,)``.

    Raises:
        ValueError: If the weight of the KL divergence is to change from step to step.
    """

    def __init__(
        self, module: VaeAttention, data: Category, augmentation: Augmentation, seed: int, precision: str = "single"
    ) -> None:
        fit = cast("GradientFit", module.fit_procedure)
        if fit.kl_warmup_steps:
            msg = "kl_warmup_steps: all steps of a CUDA graph have one weight of the KL divergence; set it to 0."
            raise ValueError(msg)
        self.model = cast("ImageVaeModel", module.train().model)
        self.data, self.augmentation, self.seed, self.precision = data, augmentation, seed, precision
        self.images, self.kl_weight = torch.cat(data.normal), fit.kl_weight
        start_from(self.model.vae, lambda: self.images.split(data.batch_size))
        self.optimizer = cast("torch.optim.Optimizer", fit.optimizer(self.model))
        for group in self.optimizer.param_groups:
            group["capturable"] = self.images.is_cuda
        device = self.images.device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.turned = torch.empty_like(self.images, memory_format=torch.channels_last)
        self.noise = self.images.new_empty(len(self.images), self.model.latent_dim)
        self.totals = self.images.new_zeros(2)
        self.epochs = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream(device) if self.images.is_cuda else None
        self.wait()

    def wait(self) -> None:
        """Wait until the device has done all work."""
        if self._stream is not None:
            torch.cuda.synchronize(self.images.device)

    def advance(self) -> None:
        """Train for an epoch; on a GPU this returns before it is done."""
        on_stream: AbstractContextManager[object] = nullcontext()
        if self._stream is not None:
            on_stream = torch.cuda.stream(self._stream)
            set_convolutions(benchmark=True, tf32=self.precision != "single")
        with on_stream:
            order = torch.randperm(len(self.images), generator=self.generator, device=self.images.device)
            self.turned.copy_(self.augmentation.apply(self.images[order], self.generator))
            self.noise.normal_(generator=self.generator)
            # The first epoch warms up what a graph needs.
            if self._stream is None or not self.epochs:
                self._learn()
            else:
                self._graph = self._graph or self._capture()
                self._graph.replay()
        self.epochs += 1

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._learn()
        return graph

    def _learn(self) -> None:
        """Do the steps of an epoch."""
        self.totals.zero_()
        size = self.data.batch_size
        for image, noise in zip(self.turned.split(size), self.noise.split(size), strict=True):
            self.optimizer.zero_grad()
            terms = self.terms(image, noise)
            (terms[0] + self.kl_weight * terms[1]).backward()
            self.optimizer.step()
            self.totals += len(image) * terms.detach()

    def terms(self, image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the negative ELBO's terms in training, negative log-likelihood and KL divergence, means over a batch.

        Args:
            image: Images of shape ``(B, C, H, W)``.
            noise: Standard normal noise of shape ``(B, d)``.
        """
        vae, kind = self.model.vae, image.device.type
        posterior = vae.posterior(image)
        latent = posterior.mean + (0.5 * posterior.log_variance).exp() * noise
        with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "mixed"):
            found = vae.terms(image, posterior, latent)
        return torch.stack([found["reconstruction"].mean(), found["kl"].mean()])
