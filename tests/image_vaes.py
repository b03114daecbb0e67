"""Small image VAEs for the test modules that need one."""

import torch

from anomalib_vae_attention.image_vae.model import ImageVaeModel

SMALL = {
    "resnet18": {"vae": "resnet18", "input_size": (32, 64), "latent_dim": 4},
    "conv": {"vae": "conv", "input_size": (20, 22), "latent_dim": 4, "widths": (8, 12), "hidden_dim": 16},
}
LAYERS = {
    "resnet18": ["conv1", "maxpool", "layer1.1.bn2", "layer2.1.conv1", "layer2", "layer3.0.downsample.0", "layer4"],
    "conv": ["conv1", "relu1", "conv2", "relu2"],
}


def make(name: str, **options: object) -> tuple[ImageVaeModel, torch.Tensor]:
    """Make a model with lively random weights that has seen normal images, and images for it."""
    model = ImageVaeModel(**{**SMALL[name], **options})
    normal, image = torch.rand(9, model.channels, *model.input_size), torch.rand(3, model.channels, *model.input_size)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(4)
        model.train()
        for _ in range(2):
            model(normal)
    model.eval()
    assert model.collect(normal.split(4), LAYERS[name]) == 9
    return model, image
