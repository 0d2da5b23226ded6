"""`python -m xception_jax reproduce`: recipes, statistics, pages, plots; a figure from nothing to its page."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from configs import reproduction
from xception_jax import __main__
from xception_jax import recipe as recipe_lib
from xception_jax.commands.reproduce import figures, intervals, page, rows, speed, training
from xception_jax.commands.reproduce.targets import TARGETS
from xception_jax.errors import TrainingError
from xception_jax.loop import Result
from xception_jax.models import create_model

ROOT = pathlib.Path(__file__).parent.parent


def parameters(scale, run):
    recipe = recipe_lib.parse(reproduction.get_config(f"{scale}/{run}"))
    settings = (
        {"num_classes": 1000, "in_channels": 3} if scale == "full" else {"num_classes": 10, "in_channels": 1}
    )
    model = nnx.eval_shape(lambda: create_model(recipe.model_name, **recipe.model_settings | settings))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


class TestRecipes:
    @pytest.mark.parametrize("scale", ["full", "small", "smoke"])
    @pytest.mark.parametrize("run", reproduction.RUNS)
    def test_every_run_has_a_recipe(self, scale, run):
        recipe = recipe_lib.parse(reproduction.get_config(f"{scale}/{run}"))
        assert recipe.averaging.decay is not None  # the paper evaluates the averages
        if scale != "full":
            assert recipe.data.name == ("digits_multilabel" if run.startswith("jft_") else "digits")

    def test_every_target_has_its_runs(self):
        needed = {network.run for target in TARGETS.values() for network in target.networks}
        assert needed == set(reproduction.RUNS)
        for target in TARGETS.values():
            assert {run for pair in target.pairs for run in pair} <= {network.run for network in target.networks}

    # The arithmetic of 9 sum m^2 + C_in C_out and 2 C_out for each layer, done without this package.
    @pytest.mark.parametrize(
        ("run", "full", "small"),
        [
            ("xception", 22_855_952, 192_178),
            ("segments_1", 22_851_752, 192_181),
            ("segments_2", 22_859_496, 192_166),
            ("segments_3", 22_856_534, 192_178),
            ("segments_4", 22_850_472, 192_689),
            ("segments_8", 22_855_112, 192_187),
            ("segments_16", 22_859_568, 192_179),
            ("segments_32", 22_854_160, 192_168),
            ("segments_64", 22_852_576, 192_223),
        ],
    )
    def test_segments_have_equal_parameters(self, run, full, small):
        assert (parameters("full", run), parameters("small", run)) == (full, small)

    def test_small_networks_have_nearly_one_size_as_in_table_3(self):
        assert 0 < 1 - parameters("small", "xception") / parameters("small", "inception_v3") < 0.035

    @pytest.mark.parametrize("variant", ["", "small", "small/exception", "tiny/xception"])
    def test_an_unknown_variant_is_refused(self, variant):
        with pytest.raises(ValueError, match="write SCALE/RUN"):
            reproduction.get_config(variant)


class TestStatistics:
    def test_paired_difference_equals_scipy(self):
        rng = np.random.default_rng(0)
        ours, theirs = rng.normal(size=(2, 6))
        found = intervals.paired_difference(ours, theirs)
        expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        np.testing.assert_allclose((found.low, found.high), (expected.low, expected.high), rtol=1e-12)
        assert found.mean == pytest.approx(np.mean(ours - theirs)) and found.pairs == 6

    @pytest.mark.parametrize(
        ("ours", "sign"), [([0.9, 0.91, 0.92], 1), ([0.1, 0.11, 0.12], -1), ([0.4, 0.6, 0.5], 0), ([0.9], 0)]
    )
    def test_only_an_interval_without_zero_has_a_sign(self, ours, sign):
        assert intervals.paired_difference(ours, [0.5] * len(ours)).sign == sign


def make_rows(name, finals):
    """Rows of a target; `finals`: run -> the last value for each seed, which three equal steps lead to."""
    target = TARGETS[name]
    labels = {network.run: network.label for network in target.networks}
    return [
        {
            **dict.fromkeys(rows.COLUMNS),
            **{"run": run, "label": labels[run], "seed": seed, "parameters": 1234, "weights": weights},
            **{"step": step, "samples": 32 * step, "loss": 0.5},
            **dict.fromkeys(target.measures, value * step / 30 if weights == "averaged" else 0.0),
        }
        for run, values in finals.items()
        for seed, value in enumerate(values)
        for step in (10, 20, 30)
        for weights in ("raw", "averaged")
    ]


def write_page(name, finals, scale="small", settings=()):
    return page.write(
        TARGETS[name],
        make_rows(name, finals),
        scale=scale,
        settings=settings,
        command="COMMAND",
        written="by CODE",
        plot="p.png",
    )


class TestPage:
    def test_numbers_stand_beside_the_paper_s(self):
        text = write_page("table1", {"xception": [0.80, 0.82, 0.81], "inception_v3": [0.70, 0.73, 0.70]})
        # 81.00 +- 1.00 against 79.0; the differences are 10, 9 and 11 points, 10 +- 4.303 * 1 / sqrt(3) = 2.48.
        assert "| Xception | 1,234 | 3 | 79.0 | 81.00 ± 1.00 | +2.00 |" in text
        assert "| Xception against Inception V3 | +0.80 | +10.00 (+7.52 to +12.48) |" in text
        assert (
            "| ResNet-152 |  | 0 | 77.0 | failed |  |" in text and "COMMAND" in text and "Seeds: 0, 1, 2." in text
        )

    def test_map_is_shown_as_table_2_prints_it(self):
        text = write_page("table2", {"jft_xception": [0.5, 0.5], "jft_inception_v3": [0.4, 0.4]})
        assert "| Xception - no FC layers | 1,234 | 2 | 6.70 | 50.00 ± 0.00 | +43.30 |" in text

    @pytest.mark.parametrize(
        ("finals", "words"),
        [
            ([0.90, 0.91, 0.92], "Xception, at the end: better, as the paper says, than Xception without"),
            ([0.10, 0.11, 0.12], "at the end: worse, contrary to what the paper says, than"),
            ([0.40, 0.60, 0.50], "at the end: no significant difference to Xception without"),
            ([0.90], "at the end: undecided with one seed against"),
        ],
    )
    def test_the_verdict_follows_from_the_interval(self, finals, words):
        others = {"xception_without_residuals": [0.5] * len(finals)}
        assert words in write_page("fig9", {"xception": finals} | others)

    def test_figures_without_numbers_have_no_column_for_them(self):
        text = write_page(
            "fig10", {"xception": [0.9, 0.9], "xception_relu": [0.5, 0.5], "xception_elu": [0.4, 0.4]}
        )
        assert "| ReLU | 1,234 | 2 | 50.00 ± 0.00 | 50.00 ± 0.00 |\n" in text

    def test_an_open_question_has_no_right_answer(self):
        others = {"segments_1": [0.5, 0.51], "segments_2": [0.6, 0.62], "segments_4": [0.9, 0.92]}
        text = write_page("spectrum", {"xception": [0.9, 0.91]} | others)
        assert "\n**Verdict.** An open question of the paper. One segment a channel, at the end:" in text
        assert "significant difference to 4 segments; better than 2 segments, 1 segment. One" in text
        assert "the paper says" not in text

    def test_the_paper_claims_faster_convergence_in_figures_9_and_10_only(self):
        text = write_page("table1", {"xception": [0.9, 0.91, 0.92], "resnet152": [0.5, 0.5, 0.5]})
        assert (
            "at the end: better, as the paper says, than ResNet-152. Xception, over training: better than" in text
        )

    def test_what_failed_is_named(self):
        text = write_page("fig9", {"xception": [0.9, 0.9]})
        assert "(section 4.6). Not trained: Xception without residual connections.\n" in text
        assert "Differences in" not in text

    def test_other_data_and_settings_are_told(self):
        finals = {"xception": [0.9], "inception_v3": [0.8]}
        text = write_page("table1", finals, settings=["--config.total_epochs=1.0"])
        assert "measured on other images" in text and "changed by `--config.total_epochs=1.0`. Seeds" in text
        assert "measured on other images" not in write_page("table1", finals, scale="full")
        assert "measured on other images" in write_page("table2", {"jft_xception": [0.1]}, scale="full")

    def test_a_smoke_test_claims_nothing(self):
        text = write_page("fig9", {"xception": [0.9], "xception_without_residuals": [0.1]}, scale="smoke")
        assert "**Verdict.** A smoke test: the numbers mean nothing." in text


class TestFigures:
    def test_a_profile_has_a_line_for_each_seed_and_their_mean(self):
        table = make_rows("fig9", {"xception": [0.9, 0.6], "xception_without_residuals": [0.3, 0.3]})
        labels = {"xception": "with", "xception_without_residuals": "without"}
        (axes,) = figures.profiles(table, labels, "top1").axes
        seed0, seed1, mean = (line.get_ydata() for line in axes.lines[:3])
        np.testing.assert_allclose(seed0, [30, 60, 90])
        np.testing.assert_allclose(seed1, [20, 40, 60])
        np.testing.assert_allclose(mean, [25, 50, 75])
        assert len(axes.lines) == 6 and axes.get_xlabel() == "gradient descent steps"
        assert [text.get_text() for text in axes.get_legend().texts] == ["with, 2 seeds", "without, 2 seeds"]

    def test_the_spectrum_goes_from_one_segment_to_one_a_channel(self):
        table = make_rows("spectrum", {"xception": [0.9], "segments_16": [0.8], "segments_1": [0.3]})
        labels = {network.run: network.label for network in TARGETS["spectrum"].networks}
        (axes,) = figures.spectrum(table, labels, "top1").axes
        ticks = [tick.get_text() for tick in axes.get_xticklabels()]
        assert ticks == ["1", "2", "3", "4", "8", "16", "32", "64", "1 a channel"]
        np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 30], [5, 80], [8, 90]])

    def test_accuracies_stand_on_a_line_for_each_run(self):
        table = make_rows("table2", {"jft_xception": [0.5, 0.6], "jft_inception_v3": [0.4]})
        labels = {network.run: network.label for network in TARGETS["table2"].networks}
        (axes,) = figures.accuracies(table, labels, "map100").axes
        assert [tick.get_text() for tick in axes.get_yticklabels()][-1] == "Xception - no FC layers"
        np.testing.assert_allclose(axes.lines[0].get_xydata(), [[40, 2]])


class TestSpeed:
    def test_sizes_are_those_of_table_3(self):
        assert speed.size("xception") == (22_855_952, 22_910_480)
        assert speed.size("inception_v3") == (23_626_728, 23_660_968)

    def test_steps_a_second_are_compared_round_by_round(self):
        measured = [
            {"run": run, "round": number, "seconds": seconds, "batch": 8, "image_size": 299, "dtype": "float32"}
            | {"cpu": "CPU", "device": "cpu", "cores": "2", "busy": "", "commit": ""}
            for number, pair in enumerate([(1.0, 2.0), (2.0, 2.0), (1.0, 4.0)])
            for run, seconds in zip(("inception_v3", "xception"), pair, strict=True)
        ]
        assert speed.ratios(measured) == [0.5, 1.0, 0.25]
        labels = {"inception_v3": "Inception V3", "xception": "Xception"}
        text = "\n".join([*speed.table(measured, labels), speed.verdict(measured, "CLAIM.", "small")])
        assert "| Inception V3 | 23,626,728 | 23,626,728 | 23,660,968 | 31 | 1 |" in text
        assert "| Xception | 22,855,952 | 22,855,952 | 22,910,480 | 28 | 0.5 |" in text
        assert "0.500 times the steps" in text
        assert "CLAIM. Here: Xception has 3.26 % fewer parameters, and is slower in 2 of 3 rounds." in text
        assert "times mean nothing" in speed.verdict(measured, "CLAIM.", "smoke")


def test_rows_survive_the_file(tmp_path):
    table = make_rows("fig9", {"xception": [0.9, 0.6]})
    rows.write(tmp_path / "rows.csv", table)
    assert rows.read(tmp_path / "rows.csv") == table


def test_runs_that_a_page_would_lose_are_named(tmp_path):
    path = tmp_path / "rows.csv"
    assert rows.missing(path, []) == []
    rows.write(path, make_rows("fig9", {"xception": [0.9, 0.6], "xception_without_residuals": [0.1]}))
    others = make_rows("fig9", {"xception": [0.8, 0.8, 0.8]})
    assert rows.missing(path, others) == ["xception_without_residuals, seed 0"]
    assert rows.missing(path, make_rows("fig9", {"xception": [0.8]})) == [
        "xception, seed 1", "xception_without_residuals, seed 0"
    ]  # fmt: skip


class TestQueue:
    """With a `train` that ends as is asked."""

    @pytest.fixture
    def jobs(self, tmp_path):
        return [training.Job(f"run{n}", 0, (), None, tmp_path / f"run{n}") for n in range(3)]

    def trained(self, jobs, monkeypatch, ends):
        """What a queue of `jobs` is told to train, one after the other."""
        calls = []

        def train(job):
            calls.append(job.run)
            end = ends.get(job.run, Result(4, {}, 9, "f", stopped=False))
            if isinstance(end, Exception):
                raise end
            return end

        monkeypatch.setattr(training, "train", train)
        return training.Queue(jobs), calls

    @pytest.mark.parametrize(
        "error", [TrainingError("no disk"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory\nmore")]
    )
    def test_a_run_that_fails_does_not_stop_the_others(self, jobs, monkeypatch, capsys, error):
        queue, calls = self.trained(jobs, monkeypatch, {"run1": error})
        assert queue.train(jobs[:2]) == jobs[:1] and queue.train(jobs) == [jobs[0], jobs[2]]
        assert calls == ["run0", "run1", "run2"] and queue.failed == {jobs[1].workdir}
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "3 runs, 0 of them finished already"
        assert lines[2] == f"[2/3] run1, seed 0: failed: {str(error).splitlines()[0]}" and len(lines) == 4

    @pytest.mark.parametrize(("evaluation", "finished"), [(None, 0), ({}, 1)])
    def test_a_stop_ends_it_even_if_it_comes_after_the_last_step(self, jobs, monkeypatch, evaluation, finished):
        queue, calls = self.trained(jobs, monkeypatch, {"run0": Result(2, evaluation, 9, "f", stopped=True)})
        with pytest.raises(training.Interrupted, match=r"interrupted.*the same command"):
            queue.train(jobs)
        assert calls == ["run0"] and len(queue.finished) == finished


# ml_collections loads recipes by a method that Python is to lose.
LOADS_RECIPES = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture
def reproduce(monkeypatch, capsys):
    """Runs the command: (exit code, what it printed)."""

    def run(*arguments):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["xception_jax", "reproduce", *map(str, arguments)])
        try:
            __main__.main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        return code, "".join(capsys.readouterr())

    return run


@LOADS_RECIPES
class TestCommand:
    def test_a_figure_from_nothing_to_its_page(self, reproduced):
        out = reproduced / "results" / "smoke"
        table = rows.read(out / "fig9.csv")
        assert {(row["run"], row["step"]) for row in table} == {
            (run, step) for run in ("xception", "xception_without_residuals") for step in (2, 4)
        }
        for row in table:
            lines = (reproduced / "runs/smoke" / row["run"] / "seed0/metrics.jsonl").read_text().splitlines()
            assert {"step": row["step"], "kind": row["weights"], "top1": row["top1"]}.items() in [
                {key: line.get(key) for key in ("step", "kind", "top1")}.items() for line in map(json.loads, lines)
            ]
        assert (out / "fig9.png").read_bytes().startswith(b"\x89PNG")
        assert "Figure 9" in (out / "fig9.md").read_text() and "fig9.md" in (out / "README.md").read_text()

    def test_what_is_finished_is_not_trained_again(self, reproduce, reproduced, tmp_path):
        metrics = reproduced / "runs/smoke/xception/seed0/metrics.jsonl"
        before = metrics.stat().st_mtime_ns
        folders = ("--workdir", reproduced / "runs", "--out", tmp_path)
        code, output = reproduce("fig9", "--scale", "smoke", *folders)
        assert code == 0 and output.startswith("2 runs, 2 of them finished already\nfig9: "), output
        assert metrics.stat().st_mtime_ns == before
        ours, theirs = (path / "smoke/fig9.csv" for path in (tmp_path, reproduced / "results"))
        assert ours.read_text() == theirs.read_text()

    def test_another_recipe_s_run_is_refused(self, reproduce, reproduced):
        folders = ("--workdir", reproduced / "runs", "--out", reproduced / "results")
        code, output = reproduce("fig9", "--scale", "smoke", *folders, "--config.schedule.base_lr=0.1")
        assert code == 2 and output.count("\n") == 1
        assert (
            output.startswith("error: --workdir: the run in ")
            and "has schedule.base_lr = 0.045, not 0.1" in output
        )

    @pytest.mark.parametrize("setting", ["total_steps=2", "evaluate_every_steps=4", "data.eval_exclude=list"])
    def test_a_run_that_was_measured_otherwise_is_refused(self, reproduce, reproduced, tmp_path, setting):
        folders = ("--workdir", reproduced / "runs", "--out", tmp_path)
        code, output = reproduce("fig9", "--scale", "smoke", *folders, f"--config.{setting}")
        assert code == 2 and output.count("\n") == 1 and f"has {setting.split('=')[0]} = " in output

    def test_a_page_of_more_runs_stays(self, reproduce, reproduced, tmp_path):
        folders = ("--workdir", reproduced / "runs", "--out", tmp_path)
        table = make_rows("fig9", {"xception": [0.9, 0.9]})
        (tmp_path / "smoke").mkdir()
        rows.write(tmp_path / "smoke/fig9.csv", table)
        code, output = reproduce("fig9", "--scale", "smoke", *folders)
        assert code == 0 and "stays as it is, because these runs are missing: xception, seed 1\n" in output
        assert rows.read(tmp_path / "smoke/fig9.csv") == table

    def test_missing_runs_can_be_launched_elsewhere(self, reproduce, tmp_path):
        code, output = reproduce(
            "table1",
            "--scale",
            "full",
            "--workdir",
            tmp_path,
            "--list",
            "--data-root",
            "/data",
            "--blacklist",
            "B",
        )
        assert code == 0
        assert [line.split("/seed")[0].split("/")[-1] for line in output.splitlines()] == [
            "xception", "inception_v3", "resnet152", "vgg16"
        ]  # fmt: skip
        assert output.startswith(
            "python train.py --config=configs/reproduction.py:full/xception --config.seed=0"
            f" --config.data.root=/data --config.data.eval_exclude=B --workdir={tmp_path}/full/xception/seed0\n"
        )

    def test_mistakes_are_one_line(self, reproduce, tmp_path):
        folders = ("--workdir", tmp_path, "--out", tmp_path)
        code, output = reproduce("fig9", "--scale", "smoke", *folders, "--config.modle.residual=False")
        assert code == 2 and "did you mean 'model'" in output.splitlines()[-1], output
        (tmp_path / "file").write_text("")
        code, output = reproduce("fig9", "--scale", "smoke", "--out", tmp_path / "file")
        assert code == 2 and output.startswith(f"error: {tmp_path / 'file'}") and output.count("\n") == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["fig9", "--data-root", "/data"], "--data-root: belongs to --scale full; leave it out"),
            (
                ["table3", "--sclae", "smoke"],
                "--sclae: no such flag; settings of the recipes are written --config",
            ),
            (["table3", "--config.batch_size=2"], "--config.batch_size=2: table 3 trains nothing; leave it out"),
            (["fig9", "--config.seed=5"], "--config.seed=5: name the seeds by --seeds"),
            (["fig9", "--config=configs/digits.py"], "--config=configs/digits.py: no such flag"),
            (["fig9", "--config.batch_size=2"], "--config.batch_size=2: the results will not be those of results"),
            (
                ["fig9", "--seeds", "7"],
                "--seeds: the results will not be those of results/reproduce; name a folder",
            ),
            (
                ["fig9", "--out", "o", "--config.averaging.decay=0"],
                "--config.averaging.decay=0.0: the averaged weights",
            ),
        ],
    )
    def test_flags_that_do_not_go_together(self, reproduce, arguments, message):
        code, output = reproduce(*arguments)
        assert code == 2 and output.startswith(f"error: {message}") and output.count("\n") == 1, output


@LOADS_RECIPES
@pytest.mark.slow
def test_every_table_and_figure(reproduce, tmp_path):
    code, output = reproduce(
        "all", "--scale", "smoke", "--workdir", tmp_path / "runs", "--out", tmp_path / "results"
    )
    assert code == 0, output
    for name in TARGETS:
        for suffix in ("csv", "png", "md"):
            assert (tmp_path / "results" / "smoke" / f"{name}.{suffix}").stat().st_size > 0
