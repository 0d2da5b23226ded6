"""Writes images into a few large files of records instead of many small files."""

import argparse
import pathlib
import shlex

from xception_jax.errors import SettingError, TrainingError

LISTED = 5  # images that were left out
TENTH = "every tenth class: 500 training and 50 validation images of each"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    kinds = parser.add_subparsers(dest="kind", required=True)
    full = _add_kind(kinds, "imagenet2012", "ILSVRC 2012, the set that TFDS writes with TensorFlow")
    part = _add_kind(kinds, "imagenet100", TENTH)
    for imagenet in (full, part):
        imagenet.add_argument("--train-tar", required=True, help="ILSVRC2012_img_train.tar")
        imagenet.add_argument("--val-tar", required=True, help="ILSVRC2012_img_val.tar")
    part.add_argument("--seed", type=int, default=0, help="of the choice of images (default: 0)")
    folder = _add_kind(kinds, "folder", "a folder of images: CLASS/*, or train/CLASS/* and val/CLASS/*")
    manifest = _add_kind(kinds, "manifest", "a .csv or .jsonl table of images with one label or several")
    manifest.add_argument("--classes", help=".csv file with the columns class and, perhaps, weight")
    for own in (folder, manifest):
        own.add_argument("--root", required=True, help="the folder, or the table")
        own.add_argument("--name", required=True, help="of the set; small letters, digits and _")
        share = "share for validation if none is given (default: 0.1)"
        own.add_argument("--holdout", type=float, default=0.1, help=share)
        own.add_argument("--short-side", type=int, help="shrink larger images to this, in pixels (default: none)")
        behind = "of transparent pixels in images that are shrunk, like data.background (default: white)"
        own.add_argument("--background", choices=("white", "black"), default="white", help=behind)
        own.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")


def _add_kind(kinds: argparse._SubParsersAction, name: str, description: str) -> argparse.ArgumentParser:
    parser = kinds.add_parser(name, help=description, description=description, allow_abbrev=False)
    out = "TFDS's data_dir; several sets can share one"
    parser.add_argument("--out", required=True, type=pathlib.Path, help=out)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Writes the set, and prints what was written and how to train on it."""
    # Importing TFDS takes a second, which other commands should not spend.
    from xception_jax.data.sources import records_writer

    try:
        request = _request(arguments)
        report = records_writer.write(request, arguments.out)
    except SettingError as error:
        raise error.as_flag() from None
    except OSError as error:
        remedy = "nothing was left there; run again when the cause is removed"
        raise TrainingError(f"--out={arguments.out}: {error}; {remedy}") from None
    _print(request, report, arguments.out)


def _request(arguments: argparse.Namespace):
    """The `Request` that the flags describe."""
    from xception_jax.data.sources import folder, imagenet, manifest, records_writer

    if arguments.kind == "imagenet100" and arguments.seed < 0:
        raise SettingError("seed", arguments.seed, "must be at least 0")
    if arguments.kind.startswith("imagenet"):
        dataset, about = imagenet.load(arguments.train_tar, arguments.val_tar), {"version": "5.1.0"}
        if arguments.kind == "imagenet100":
            dataset = imagenet.choose_100(dataset, seed=arguments.seed)
            about = {"description": f"{TENTH}, seed {arguments.seed}"}
        return records_writer.Request(dataset=dataset, name=arguments.kind, encoding="jpeg", decode=False, **about)
    records_writer.check_name(arguments.name)
    if not 0 <= arguments.holdout < 1:
        raise SettingError("holdout", arguments.holdout, "must be a share from 0 to less than 1")
    if arguments.short_side is not None and arguments.short_side < 1:
        raise SettingError("short_side", arguments.short_side, "must be at least 1 pixel")
    if arguments.kind == "folder":
        dataset = folder.load(arguments.root, holdout=arguments.holdout)
    else:
        dataset = manifest.load(arguments.root, classes=arguments.classes, holdout=arguments.holdout)
    settings = ("name", "short_side", "background", "skip_unreadable")
    return records_writer.Request(dataset=dataset, **{name: getattr(arguments, name) for name in settings})


def _print(request, report, out: pathlib.Path) -> None:
    counts = " and ".join(f"{count:,} {split}" for split, count in report.counts.items())
    print(f"{report.directory}: {counts} records{', already there' if report.was_there else ''}")
    for note in request.dataset.notes:
        print(note)
    if request.short_side:
        of = sum(report.counts.values())
        print(f"shrunk to a shorter side of {request.short_side} pixels: {report.shrunk:,} of {of:,}")
    if left_out := report.left_out:
        names = "; ".join([*left_out[:LISTED], *["..."] * (len(left_out) > LISTED)])
        print(f"unreadable images left out: {len(left_out):,}: {names}")
    print(f"train with --config.data.name=tfds:{request.name} --config.data.root={shlex.quote(str(out))}")
