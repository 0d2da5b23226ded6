"""Makes a table or figure of the paper: trains the missing runs, then writes a CSV file, a plot and a page."""

import argparse
import os
import pathlib
import re
import sys
from collections.abc import Sequence

from xception_jax import loop
from xception_jax.commands import device
from xception_jax.commands.reproduce import figures, page, rows, speed, training
from xception_jax.commands.reproduce.definitions import SCALES, Target
from xception_jax.commands.reproduce.targets import TARGETS
from xception_jax.commands.reproduce.training import Job
from xception_jax.errors import TrainingError, UserError
from xception_jax.run import memory

OUT = pathlib.Path("results/reproduce")
HEADINGS = {"paper": "The paper's tables and figures", "notebook": "The notebook's text models"}  # by document


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags; --config.KEY=VALUE changes every recipe."""
    parser.add_argument("target", choices=[*TARGETS, "all"], help="table or figure of the paper")
    parser.add_argument("--scale", choices=SCALES, default="small", help="see configs/reproduction.py")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="default: 0; small: 0 1 2; rnn_notebook, small and full: 0 1 2 3 4"
    )
    runs = pathlib.Path("runs/reproduce")
    parser.add_argument("--workdir", type=pathlib.Path, default=runs, help="folder of the runs")
    parser.add_argument("--out", type=pathlib.Path, help=f"folder of the results; default: {OUT}")
    parser.add_argument("--data-root", help="full scale: TFDS's data_dir with imagenet2012")
    parser.add_argument("--jft-root", help="full scale: TFDS's data_dir with open_images_v4")
    parser.add_argument("--text-root", help="full scale: folder with AG News' train.csv and test.csv")
    parser.add_argument("--blacklist", help="full scale: file that lists ImageNet validation images to leave out")
    about = "print the commands of the missing runs, to run them elsewhere"
    parser.add_argument("--list", action="store_true", help=about)
    parser.set_defaults(settings_of_recipe=[])


def run(arguments: argparse.Namespace) -> None:
    """Trains and reports one table or figure after the other; if a run fails, the others are reported."""
    memory.keep_freed_memory()
    loop.use_compilation_cache()
    _check(arguments)
    names = list(TARGETS) if arguments.target == "all" else [arguments.target]
    jobs = {name: _jobs(arguments, TARGETS[name]) for name in names}
    each = list({job.workdir: job for needed in jobs.values() for job in needed}.values())
    if arguments.list:
        print("\n".join(job.command for job in each if not job.finished))
        return
    out = (arguments.out or OUT) / arguments.scale
    try:
        out.mkdir(parents=True, exist_ok=True)
        queue = training.Queue(each)
        for name, needed in jobs.items():
            _report(name, queue.train(needed), out, arguments)
            _index(out, arguments.scale)
    except training.Interrupted as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)  # a compilation in another thread must neither delay the end of the process nor crash it
    except OSError as error:
        path = error.filename or out
        remedy = "name other folders by --out and --workdir"
        raise UserError(f"{path}: cannot be used ({error.strerror}); {remedy}") from None
    if queue.failed:
        raise TrainingError(f"{len(queue.failed)} of {len(each)} runs failed, see above")


def _check(arguments: argparse.Namespace) -> None:
    """Raises UserError for flags that do not go together."""
    for flag in ("data_root", "jft_root", "text_root", "blacklist"):
        if getattr(arguments, flag) is not None and arguments.scale != "full":
            raise UserError(f"--{flag.replace('_', '-')}: belongs to --scale full; leave it out")
    settings = arguments.settings_of_recipe
    for setting in settings:
        if setting.startswith("-") and not setting.startswith("--config."):
            raise UserError(f"{setting}: no such flag; settings of the recipes are written --config.KEY=VALUE")
        if setting.split("=")[0] == "--config.seed":
            raise UserError(f"{setting}: name the seeds by --seeds")
    if settings and arguments.target == "table3":
        raise UserError(f"{settings[0]}: table 3 trains nothing; leave it out")
    if (settings or arguments.seeds) and not (arguments.out or arguments.list):
        other = settings[0] if settings else "--seeds"
        raise UserError(f"{other}: the results will not be those of {OUT}; name a folder for them by --out")


def _jobs(arguments: argparse.Namespace, target: Target) -> list[Job]:
    """All runs that a target needs."""
    if target.kind == "speed":
        return []
    scale, jobs = arguments.scale, []
    for run in target.labels:
        if target.examples == "texts":
            places = {"root": arguments.text_root}
        elif run.startswith("jft_"):
            places = {"root": arguments.jft_root}
        else:
            places = {"root": arguments.data_root, "eval_exclude": arguments.blacklist}
        settings = [f"--config.data.{key}={value}" for key, value in places.items() if value is not None]
        settings += arguments.settings_of_recipe
        for seed in dict.fromkeys(arguments.seeds or range(target.seeds[scale])):
            jobs.append(
                training.make_job(run, scale=scale, seed=seed, workdir=arguments.workdir, settings=settings)
            )
    return jobs


def _report(name: str, jobs: Sequence[Job], out: pathlib.Path, arguments: argparse.Namespace) -> None:
    """Writes NAME.csv, NAME.png and NAME.md, unless an earlier page has runs that are missing now."""
    target, scale, path = TARGETS[name], arguments.scale, out / f"{name}.md"
    labels, written = target.labels, f"by commit {device.commit() or 'unknown'} on {device.name()}"
    about = {"command": device.command(), "written": written, "plot": f"{name}.png"}
    if target.kind == "speed":
        measured = speed.measure(scale)
        rows.write(out / f"{name}.csv", measured, speed.COLUMNS)
        figure = figures.steps_per_second(measured, labels)
        verdict = speed.verdict(measured, target.claim, scale)
        text = page.assemble(target, speed.table(measured, labels), verdict, **about)
    else:
        found = rows.of_jobs(jobs, labels)
        if missing := ", ".join(rows.missing(out / f"{name}.csv", found)):
            print(f"{name}: {path} stays as it is, because these runs are missing: {missing}", flush=True)
            return
        if not found:
            print(f"{name}: no page, since all runs failed", flush=True)
            return
        rows.write(out / f"{name}.csv", found, dict.fromkeys([*rows.COLUMNS, *target.measures]))
        figure = figures.FIGURES[target.kind](found, labels, target.measures[0])
        text = page.write(target, found, scale=scale, settings=arguments.settings_of_recipe, **about)
    figure.savefig(out / f"{name}.png", dpi=120)
    path.write_text(text)
    print(f"{name}: {path}", flush=True)


def _index(out: pathlib.Path, scale: str) -> None:
    """Writes README.md of the folder: its pages with their verdicts, by document."""
    sections = []
    for document, title in HEADINGS.items():
        targets = {name: target for name, target in TARGETS.items() if target.document == document}
        pages = {name: path for name in targets if (path := out / f"{name}.md").exists()}
        if not pages:
            continue
        runs = next(iter(targets.values())).scales[scale]
        lines = [f"{'##' if sections else '#'} {title}, scale `{scale}`", "", f"Runs: {runs}.", ""]
        for name, path in pages.items():
            verdicts = re.findall(r"^\*\*Verdict\.\*\* (.*)$", path.read_text(), re.MULTILINE)
            lines += [f"- [{targets[name].title}]({name}.md)", *(f"  {verdict}" for verdict in verdicts)]
        sections.append("\n".join(lines) + "\n")
    (out / "README.md").write_text("\n".join(sections))
