"""Diffusion on latents: an autoencoder of digits, a model of its latents, and decoded samples.

python examples/latents.py            # about a minute
python examples/latents.py --quick    # seconds, a worse model

The command trains on latents from a file: docs/data.md.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from pydiffaccel.networks import NetworkConfig, build_network
from pydiffaccel.sampler import sample
from pydiffaccel.trainer.build import make_coupling, make_process
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.data import TrainData, load_digits
from pydiffaccel.trainer.loop import Trainer

CHANNELS = 2  # a latent is [2, 4, 4], half as many numbers as a digit


class Autoencoder(nn.Module):
    """Digits [B, 1, 8, 8] to latents [B, 2, 4, 4] and back."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(width, CHANNELS, 3, padding=1)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, 4 * width, 3, padding=1),
            nn.SiLU(),
            nn.PixelShuffle(2),
            nn.Conv2d(width, 1, 3, padding=1),
        )


def train_autoencoder(images: Tensor, steps: int) -> Autoencoder:
    """Mean squared error, with a little noise on the latents so that the decoder forgives what diffusion leaves."""
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        x = images[torch.randint(len(images), (128,))]
        latents = model.encoder(x)
        noisy = latents + 0.1 * latents.detach().std() * torch.randn_like(latents)
        loss = (model.decoder(noisy) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def distance(images: Tensor, others: Tensor) -> float:
    """Mean squared distance of each image to the nearest one of the others, per pixel."""
    return float((torch.cdist(images.flatten(1), others.flatten(1)).amin(1).square() / images[0].numel()).mean())


def main(quick: bool = False) -> dict[str, float]:
    """Trains both models and returns how far decoded samples are from the digits, and the digits from them."""
    torch.manual_seed(0)
    digits = load_digits()
    images = digits.batch(np.arange(len(digits)))
    autoencoder = train_autoencoder(images, 300 if quick else 1500)
    with torch.no_grad():
        latents = autoencoder.encoder(images)
    mean, std = latents.mean((0, 2, 3), keepdim=True), latents.std((0, 2, 3), keepdim=True)
    data = TrainData("latents of the digits", ((latents - mean) / std).numpy(), kind="latents")

    options = TrainOptions(
        forward="flow",
        coupling="hungarian",
        train_batch_size=64,
        max_train_steps=150 if quick else 800,
        lr_warmup_steps=20,
    )
    config = NetworkConfig((CHANNELS, 4, 4), (16,) if quick else (48,))
    network, process, coupling = build_network(config), make_process(options), make_coupling(options)
    optimizer = torch.optim.Adam(network.parameters(), options.learning_rate)
    trainer = Trainer(network.train(), process, coupling, optimizer, data, options)
    for _ in range(options.max_train_steps):
        trainer.train_step()

    count = 200 if quick else 1000
    made, _ = sample(network.eval(), data.shape, range(count), process=process, coupling=coupling, num_steps=10)
    noise = torch.randn(made.shape)
    with torch.no_grad():
        restored, decoded, random = (autoencoder.decoder(z * std + mean) for z in ((latents - mean) / std, made, noise))
    return {
        "autoencoder: error of restored digits": float((restored - images).square().mean()),
        "real digits to other real digits": distance(images[1::2], images[::2]),
        "decoded samples to real digits": distance(decoded, images),
        "decoded plain noise to real digits": distance(random, images),
        "real digits to decoded samples": distance(images, decoded),
        "real digits to decoded plain noise": distance(images, random),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    print("mean squared distance to the nearest, per pixel (the digits are in [-1, 1]):")
    for name, value in main(parser.parse_args().quick).items():
        print(f"  {name:40} {value:.4f}")
