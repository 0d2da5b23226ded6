"""TensorFlow's side of `benchmark data --against tfdata`. Runs by its path in any python that has tensorflow.

It reads and writes what ../versus.py says, but that "seconds" is {"cpu": ..., "wall": ...}, of `batches` batches.
argv[1] is a JSON object with image_size, method (of tf.image.resize), batch, batches, and plan: a JSON file of
{"paths": [...], "windows": [[top, left, height, width], ...]}, the JPEG files and their parts in order.
"""

import importlib
import json
import os
import pathlib
import sys
import time


def main() -> None:
    """Some batches for each line read."""
    start = time.perf_counter()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what else is printed must not come between the answers
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        tf = importlib.import_module("tensorflow")
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": error.name}), file=answers)
        return
    options = json.loads(sys.argv[1])
    batches = iter(make_dataset(tf, options))
    versions = {"tensorflow": tf.__version__}
    print(json.dumps({"setup_seconds": time.perf_counter() - start, "versions": versions}), file=answers)
    cpu = time.process_time()
    for _ in sys.stdin:
        wall = time.perf_counter()
        for _ in range(options["batches"]):
            next(batches)
        # Of the processor since the last answer: what is done ahead, between the steps, counts too.
        before, cpu = cpu, time.process_time()
        print(json.dumps({"seconds": {"cpu": cpu - before, "wall": time.perf_counter() - wall}}), file=answers)


def make_dataset(tf, options):
    """A tf.data.Dataset of uint8[B, size, size, 3] that computes in one thread, and only when asked."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    plan = json.loads(pathlib.Path(options["plan"]).read_text())
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
    dataset = tf.data.Dataset.from_tensor_slices((plan["paths"], plan["windows"]))
    return dataset.map(load).batch(options["batch"]).with_options(settings)


if __name__ == "__main__":
    main()
