"""This package's input pipeline in a race: some batches a call, prepared in one thread.

It runs by its path, with the checkout that PYTHONPATH names: of today, or of version 0.1. argv[1] is a JSON object
with folder (of JPEG files), image_size, batch and batches.
"""

import os

import protocol

REPEAT = 50  # times that each file occurs: grain draws the order of many images faster than that of a few hundred


def make_batches(xception_jax, data, options):
    """A function that prepares `batches` batches."""
    names = sorted(os.listdir(options["folder"])) * REPEAT
    source = data.ImageFiles.make(options["folder"], names, [0] * len(names))
    settings = {"image_size": options["image_size"], "crop": "random_resized", "resize": "bilinear"}
    try:
        from xception_jax.data.images.transforms import Decode, TrainTransform

        reader = data.Reader(source, Decode(orientation=False, background="white"), substitute=True)
    except ModuleNotFoundError:  # version 0.1
        from xception_jax.data.transforms import TrainTransform

        reader = data.Reader(source, substitute=True)
    transform = TrainTransform(**settings)
    batches = data.train_batches(reader, transform, batch_size=options["batch"], seed=0, num_threads=1)
    return lambda: [next(batches) for _ in range(options["batches"])]


if __name__ == "__main__":
    protocol.serve(["xception_jax", "xception_jax.data"], make_batches, cpu=True)
