"""Makes a table or figure of the paper: trains what it needs and is not there, then writes CSV, plot and page."""

import argparse
import pathlib
import shlex
import sys
from collections.abc import Sequence

from xception_jax import loop, memory
from xception_jax.commands.benchmark import device
from xception_jax.commands.reproduce import figures, page, rows, speed, training
from xception_jax.commands.reproduce.targets import SCALES, SEEDS, TARGETS, Target
from xception_jax.commands.reproduce.training import Job
from xception_jax.errors import TrainingError, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags; --config.KEY=VALUE changes every recipe."""
    parser.add_argument("target", choices=[*TARGETS, "all"], help="table or figure of the paper")
    parser.add_argument("--scale", choices=SCALES, default="small", help="see configs/reproduction.py")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0, at the small scale 0 1 2")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/reproduce"), help="of the runs")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("results/reproduce"), help="of CSV, plot and page"
    )
    parser.add_argument("--data-root", help="full scale: TFDS's data_dir with imagenet2012")
    parser.add_argument("--jft-root", help="full scale: TFDS's data_dir with open_images_v4")
    parser.add_argument("--blacklist", help="full scale: file that lists ImageNet validation images to leave out")
    parser.add_argument(
        "--list", action="store_true", help="print the commands of the missing runs, to launch them elsewhere"
    )
    parser.set_defaults(settings_of_recipe=[])


def run(arguments: argparse.Namespace) -> None:
    """Trains and reports."""
    memory.keep_freed_memory()
    loop.use_compilation_cache()
    for flag in ("data_root", "jft_root", "blacklist"):
        if getattr(arguments, flag) is not None and arguments.scale != "full":
            raise UserError(f"--{flag.replace('_', '-')}: belongs to --scale full; leave it away")
    names = list(TARGETS) if arguments.target == "all" else [arguments.target]
    jobs = _jobs(arguments, names)
    if arguments.list:
        print("\n".join(job.command for job in jobs if not job.finished))
        return
    out = arguments.out / arguments.scale
    try:
        out.mkdir(parents=True, exist_ok=True)
        done = training.train_all(jobs)
        for name in names:
            _report(name, TARGETS[name], done, out, arguments.scale)
        _index(out, arguments.scale)
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: cannot be used ({error.strerror}); "
            "name other folders by --out and --workdir"
        ) from None
    if missing := len(jobs) - len(done):
        raise TrainingError(f"{missing} of {len(jobs)} runs failed, see above; their lines in {out} are empty")


def _jobs(arguments: argparse.Namespace, names: Sequence[str]) -> list[Job]:
    """Every run that the targets need, once."""
    targets = [TARGETS[name] for name in names if TARGETS[name].kind != "speed"]
    runs = dict.fromkeys(network.run for target in targets for network in target.networks)
    return [
        training.make_job(
            run,
            scale=arguments.scale,
            seed=seed,
            workdir=arguments.workdir,
            settings=[*_data_settings(arguments, run), *arguments.settings_of_recipe],
        )
        for run in runs
        for seed in arguments.seeds or range(SEEDS[arguments.scale])
    ]


def _data_settings(arguments: argparse.Namespace, run: str) -> list[str]:
    """Where a run of the full scale finds its images, and those it leaves out."""
    jft = run.startswith("jft_")
    values = {
        "root": arguments.jft_root if jft else arguments.data_root,
        "eval_exclude": None if jft else arguments.blacklist,
    }
    return [f"--config.data.{key}={value}" for key, value in values.items() if value is not None]


def _report(name: str, target: Target, jobs: Sequence[Job], out: pathlib.Path, scale: str) -> None:
    """Writes NAME.csv, NAME.png and NAME.md, and says so."""
    command = f"python -m xception_jax {shlex.join(sys.argv[1:])}"
    labels = {network.run: network.label for network in target.networks}
    if target.kind == "speed":
        measured = speed.measure(scale)
        rows.write(out / f"{name}.csv", measured, speed.COLUMNS)
        figure = figures.steps_per_second(measured, labels)
        text = "\n".join(
            [
                f"# {target.title}",
                "",
                f"    {command}",
                "",
                *speed.table(measured, labels),
                "",
                f"![]({name}.png)",
                "",
            ]
        )
    else:
        found = rows.of_jobs(jobs, labels)
        if not found:
            return
        rows.write(out / f"{name}.csv", found)
        figure = figures.FIGURES[target.kind](found, labels, target.measures[0])
        text = page.write(
            target,
            found,
            scale=scale,
            command=command,
            device=device.describe().splitlines()[0],
            plot=f"{name}.png",
        )
    figure.savefig(out / f"{name}.png", dpi=120)
    (out / f"{name}.md").write_text(text)
    print(f"{name}: {out / f'{name}.md'}", flush=True)


def _index(out: pathlib.Path, scale: str) -> None:
    """README.md of the folder: every page that is there, with its verdict."""
    lines = [f"# The paper's tables and figures, scale `{scale}`", "", f"Runs: {SCALES[scale]}.", ""]
    for name, target in TARGETS.items():
        if not (path := out / f"{name}.md").exists():
            continue
        verdicts = [line for line in path.read_text().splitlines() if line.startswith("**Verdict.**")]
        lines += [
            f"- [{target.title}]({name}.md)",
            *(f"  {line.removeprefix('**Verdict.** ')}" for line in verdicts),
        ]
    (out / "README.md").write_text("\n".join(lines) + "\n")
