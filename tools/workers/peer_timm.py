"""timm's side of a race of steps. Runs by its path in any python that has torch and timm.

argv[1] is a JSON object with model, mode, batch, image_size, classes, compile (torch.compile) and amp (bfloat16 by
autocast).
"""

import contextlib
import os

import protocol


def make_step(timm, torch, options):
    """A function that runs one step and waits for it."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    torch.backends.cudnn.benchmark = True  # pick the fastest convolutions
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n, size, classes = options["batch"], options["image_size"], options["classes"]
    model = timm.create_model(options["model"], num_classes=classes)
    model = model.to(device, memory_format=torch.channels_last)
    call = torch.compile(model) if options["compile"] else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    image = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, device=device)
    image = image.contiguous(memory_format=torch.channels_last)
    label = torch.randint(0, classes, (n,), device=device)

    def loss():
        amp = torch.autocast(device, torch.bfloat16) if options["amp"] else contextlib.nullcontext()
        with amp:
            logits = call((image.float() / 255 - 0.5) / 0.5)
            logits = logits if torch.is_tensor(logits) else logits[0]  # without auxiliary logits
            return torch.nn.functional.cross_entropy(logits.float(), label)

    def train():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    training = options["mode"] == "train"
    model.train(training)

    def step():
        with contextlib.nullcontext() if training else torch.inference_mode():
            train() if training else loss()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    protocol.serve(["timm", "torch"], make_step)
