"""Digits of a wanted class: training that leaves the class out at times, and classifier-free guidance in sampling.

    python examples/class_conditional.py            # a minute or two
    python examples/class_conditional.py --quick    # seconds, a worse model

The same from the command line:

    python -m pydiffaccel.train --output_dir runs/classes --class_conditional --forward flow --coupling hungarian
    python -m pydiffaccel.sample runs/classes --classes 3,5 --guidance_scale 2
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pydiffaccel.sampler import load_run, sample
from pydiffaccel.train import train
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.data import load_digits

SCALES = (1.0, 2.0, 4.0)


def nearest(images: Tensor, others: Tensor) -> Tensor:
    """The number of the nearest one of the others for each image, int64 [N]."""
    return torch.cdist(images.flatten(1), others.flatten(1)).argmin(1)


def main(quick: bool = False) -> dict[str, float]:
    """Trains, samples, and returns how often the nearest real digit of a sample is of the class asked for."""
    digits = load_digits()
    assert digits.labels is not None
    images, labels = digits.batch(np.arange(len(digits))), torch.from_numpy(digits.labels)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(
            output_dir=Path(folder, "run"),
            class_conditional=True,
            conditioning_dropout_prob=0.1,
            forward="flow",
            coupling="hungarian",  # pairs inside each class, so that every class starts from normal noise
            train_batch_size=64,
            max_train_steps=120 if quick else 500,
            channels=(16,) if quick else (),
        )
        if train(options) != 0:
            raise RuntimeError("training was interrupted")
        run = load_run(options.folder)

    count = 100 if quick else 500
    wanted = torch.arange(count) % 10
    figures = {"real digits": float((labels[nearest(images[1::2], images[::2]) * 2] == labels[1::2]).double().mean())}
    for scale in SCALES:
        samples, _ = sample(
            run.network,
            digits.shape,
            range(count),
            process=run.description.process,
            coupling=run.description.coupling,
            condition={"class_labels": wanted},
            unconditional={"class_labels": torch.tensor([10])},  # told to be of no class
            guidance_scale=scale,
            num_steps=10,
        )
        figures[f"samples, guidance {scale:g}"] = float((labels[nearest(samples, images)] == wanted).double().mean())
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    print("the nearest real digit is of the right class:")
    for name, value in main(parser.parse_args().quick).items():
        print(f"  {name:24} {value:.1%}")
