"""TensorFlow's side of a race of input pipelines. Runs by its path in any python that has tensorflow.

argv[1] is a JSON object with image_size, method (of tf.image.resize), batch, batches (a call), and tasks: a JSON
file of {"paths": [...], "windows": [[top, left, height, width], ...]}, the JPEG files and their parts in order.
"""

import json
import os
import pathlib

import protocol


def make_batches(tf, options):
    """A function that prepares `batches` batches."""
    batches = iter(make_dataset(tf, options))
    return lambda: [next(batches) for _ in range(options["batches"])]


def make_dataset(tf, options):
    """A tf.data.Dataset of uint8[B, size, size, 3] that computes in one thread, and only when asked."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tasks = json.loads(pathlib.Path(options["tasks"]).read_text())
    size = (options["image_size"], options["image_size"])

    def load(path, window):
        image = tf.io.decode_and_crop_jpeg(tf.io.read_file(path), window, channels=3)
        return tf.cast(tf.image.resize(image, size, options["method"]), tf.uint8)

    settings = tf.data.Options()
    settings.autotune.enabled = False
    for name in ("inject_prefetch", "map_parallelization", "map_and_batch_fusion"):  # they work ahead, in threads
        setattr(settings.experimental_optimization, name, False)
    settings.threading.private_threadpool_size = 1
    settings.threading.max_intra_op_parallelism = 1
    dataset = tf.data.Dataset.from_tensor_slices((tasks["paths"], tasks["windows"]))
    return dataset.map(load).batch(options["batch"]).with_options(settings)


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    protocol.serve(["tensorflow"], make_batches, cpu=True, warm_up=0)
