"""`python -m xception_jax reproduce`: recipes, statistics, pages, plots; a figure from nothing to its page."""

import itertools
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
from xception_jax.commands.reproduce import effects, figures, intervals, page, rows, speed, training
from xception_jax.commands.reproduce.notebook import RNN_NOTEBOOK
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
        assert needed == {*reproduction.RUNS, *reproduction.TEXT_RUNS}
        for target in TARGETS.values():
            assert {run for pair in target.pairs for run in pair} <= {network.run for network in target.networks}
            weighted = {
                run for question in target.questions for effect in question.effects for run in effect.weights
            }
            assert weighted <= {network.run for network in target.networks}

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


class TestRecipesOfTexts:
    """As the lesson trains: batches of 16, one epoch, Adam with 0.001, 64 and 32 units, 0 for unknown tokens."""

    def test_the_runs_are_all_combinations_and_three_more(self):
        combined = itertools.product(("rnn", "lstm"), ("normal", "shifted"), ("mean", "last", "packed"))
        names = ["_".join(parts) for parts in combined]
        assert list(reproduction.TEXT_RUNS) == [*names, "gru", "two_layers", "bidirectional"]
        assert RNN_NOTEBOOK.seeds == {"full": 5, "small": 5, "smoke": 1}

    @pytest.mark.parametrize(
        ("run", "cell", "mean", "readout", "layers", "bidirectional"),
        [
            ("rnn_normal_mean", "rnn", 0.0, "mean", 1, False),  # RNNClassifier
            ("rnn_normal_last", "rnn", 0.0, "last", 1, False),
            ("rnn_normal_packed", "rnn", 0.0, "packed", 1, False),
            ("rnn_shifted_mean", "rnn", -0.5, "mean", 1, False),
            ("rnn_shifted_last", "rnn", -0.5, "last", 1, False),
            ("rnn_shifted_packed", "rnn", -0.5, "packed", 1, False),
            ("lstm_normal_mean", "lstm", 0.0, "mean", 1, False),
            ("lstm_normal_last", "lstm", 0.0, "last", 1, False),
            ("lstm_normal_packed", "lstm", 0.0, "packed", 1, False),
            ("lstm_shifted_mean", "lstm", -0.5, "mean", 1, False),
            ("lstm_shifted_last", "lstm", -0.5, "last", 1, False),  # LSTMClassifier
            ("lstm_shifted_packed", "lstm", -0.5, "packed", 1, False),  # LSTMPackClassifier
            ("gru", "gru", -0.5, "packed", 1, False),
            ("two_layers", "lstm", -0.5, "packed", 2, False),
            ("bidirectional", "lstm", -0.5, "packed", 1, True),
        ],
    )
    def test_the_notebook_s_recipe(self, run, cell, mean, readout, layers, bidirectional):
        for scale in ("full", "small", "smoke"):
            recipe = recipe_lib.parse(reproduction.get_config(f"{scale}/{run}"))
            model = recipe.model
            found = [model[key] for key in ("cell", "embedding_mean", "readout", "layers", "bidirectional")]
            assert found == [cell, mean, readout, layers, bidirectional]
            sizes = (model["embedding_size"], model["hidden_size"])
            assert sizes == ((8, 8) if scale == "smoke" else (64, 32))
            length = (recipe.total_epochs, recipe.total_steps)
            assert length == ((None, 4) if scale == "smoke" else (1.0, None))
            assert (recipe.batch_size, recipe.log_every_steps) == (16, 200)
            assert recipe.eval_batch_size == (200 if scale == "smoke" else 16)
            assert (recipe.optimizer.name, recipe.optimizer.weight_decay) == ("adam", 0.0)
            assert (recipe.schedule.name, recipe.schedule.base_lr) == ("constant", 0.001)
            assert (recipe.schedule.lr_rule, recipe.averaging.decay) == ("none", None)
            assert (recipe.data.vocabulary_order, recipe.data.min_freq) == ("notebook", 1)
            assert recipe.data.name == ("ag_news" if scale == "full" else "docstrings")

    # 64 V + the rest, as torch counts them for four classes.
    @pytest.mark.parametrize(
        ("run", "rest"),
        [
            ("rnn_normal_mean", 3_268),
            ("lstm_shifted_last", 12_676),
            ("lstm_shifted_packed", 12_676),
            ("gru", 9_540),
            ("two_layers", 21_124),
            ("bidirectional", 25_348),
        ],
    )
    def test_sizes_are_the_notebook_s(self, run, rest):
        recipe = recipe_lib.parse(reproduction.get_config(f"full/{run}"))
        sizes = {"vocab_size": 95_812, "num_classes": 4}
        model = nnx.eval_shape(lambda: create_model(recipe.model_name, **recipe.model_settings | sizes))
        assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == 64 * 95_812 + rest


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


def make_text_rows(finals, running=0.5, later=None):
    """The rows of the text models, which have no averaged weights: run -> the held-out accuracy of each seed."""
    numbers = {"running": running, "running_108800": later}
    table = make_rows("rnn_notebook", finals)
    return [row | numbers | {"top1": finals[row["run"]][row["seed"]]} for row in table if row["weights"] == "raw"]


def write_text_page(finals, scale="small", **numbers):
    about = {"settings": (), "command": "COMMAND", "written": "by CODE", "plot": "p.png"}
    return page.write(RNN_NOTEBOOK, make_text_rows(finals, **numbers), scale=scale, **about)


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


# Held-out accuracies of two seeds. The LSTM adds 0.1, shifted vectors 0.02, "last" -0.2; "last" and LSTM together
# another -0.08, and the LSTM with seed 1 another 0.01.
CUBE = {
    "rnn_normal_mean": [0.50, 0.50],
    "lstm_normal_mean": [0.60, 0.61],
    "rnn_shifted_mean": [0.52, 0.52],
    "lstm_shifted_mean": [0.62, 0.63],
    "rnn_normal_last": [0.30, 0.30],
    "lstm_normal_last": [0.32, 0.33],
    "rnn_shifted_last": [0.32, 0.32],
    "lstm_shifted_last": [0.34, 0.35],
}


class TestEffects:
    def test_shares_are_means_over_all_orders(self):
        """The interaction of -0.08 belongs half to the cell and half to the readout."""
        shares = RNN_NOTEBOOK.questions[1].effects
        found = {e.label: effects.measured(e, make_text_rows(CUBE), "top1") for e in shares}
        expected = {"cell": 0.1 - 0.04 + 0.005, "initial vectors": 0.02, "readout": -0.2 - 0.04}
        assert {name: share.mean for name, share in found.items()} == pytest.approx(expected)
        # Student's t for two pairs: 12.7062; the standard error of 0.06 and 0.07 is 0.005.
        assert found["cell"].high - found["cell"].mean == pytest.approx(12.7062 * 0.005, rel=1e-4)
        (total,) = [
            e for e in RNN_NOTEBOOK.questions[0].effects if e.label == "LSTMClassifier against RNNClassifier"
        ]
        whole = effects.measured(total, make_text_rows(CUBE), "top1").mean
        assert sum(share.mean for share in found.values()) == pytest.approx(whole) == pytest.approx(-0.155)

    def test_only_common_seeds_count(self):
        (effect, *_) = RNN_NOTEBOOK.questions[0].effects
        table = make_text_rows({"lstm_shifted_packed": [0.6, 0.7, 0.9], "lstm_shifted_last": [0.5, 0.4]})
        found = effects.measured(effect, table, "top1")
        assert (round(found.mean, 9), found.pairs) == (0.2, 2)
        assert effects.measured(effect, make_text_rows({"lstm_shifted_packed": [0.6]}), "top1") is None
        assert effects.measured(effect, table, "running_108800") is None

    def test_the_notebook_s_numbers(self):
        differences = [
            effects.printed(effect, RNN_NOTEBOOK.networks, "running_108800")
            for effect in RNN_NOTEBOOK.questions[0].effects
        ]
        # 0.8051378 - 0.7601563, 0.7601563 - 0.8060570, 0.8051378 - 0.8060570 at 108,800, from its log
        np.testing.assert_allclose(differences, [0.04498, -0.04590, -0.00092], atol=1e-5)
        printed = {
            network.run: network.paper["running"] for network in RNN_NOTEBOOK.networks if len(network.paper) > 1
        }
        # At the end it prints 0.7728 and 0.8138166666666666.
        assert printed == {"lstm_shifted_last": 0.7728, "lstm_shifted_packed": 0.81382}


class TestRunningAccuracy:
    LINES = (
        {"step": 200, "top1": 0.25},
        {"step": 400, "top1": 0.75},
        {"step": 440, "top1": 1.0},
    )

    def test_is_weighted_by_steps(self):
        assert rows.running_accuracy(self.LINES, 440) == pytest.approx((200 * 0.25 + 200 * 0.75 + 40) / 440)
        assert rows.running_accuracy(self.LINES, 400) == 0.5

    @pytest.mark.parametrize("steps", [0, 300, 400.5, 6800])
    def test_is_unknown_where_no_row_ends(self, steps):
        assert rows.running_accuracy(self.LINES, steps) is None

    def test_is_unknown_without_top1(self):
        assert rows.running_accuracy([{"step": 200, "map100": 0.5}], 200) is None
        assert rows.running_accuracy([], 200) is None


class TestPageOfTexts:
    FINALS = CUBE | {"lstm_shifted_packed": [0.60, 0.62]}

    def test_numbers_stand_beside_the_notebook_s(self):
        text = write_text_page(self.FINALS)
        assert "The raw weights are evaluated on every held-out text." in text and "Seeds: 0, 1." in text
        row = "| LSTM, N(-0.5, 1), packed (LSTMPackClassifier) | 1,234 | 2 | 61.00 ± 1.41 | 81.38 | 50.00 ± 0.00"
        assert f"{row} | -31.38 | 80.51 |\n" in text
        assert "| LSTMPackClassifier, with a GRU |  | 0 | failed |  | failed |  |  |\n" in text
        assert "The notebook measured on other texts, so the differences to its numbers say nothing." in text
        # 26 and 27 points; 26.5 +- 12.7062 * 0.5
        row = "| LSTMPackClassifier against LSTMClassifier | +26.50 (+20.15 to +32.85) |"
        assert f"{row} +0.00 (+0.00 to +0.00) | +4.50 |\n" in text
        assert "over training" not in text and "image" not in text

    def test_the_full_scale_reaches_the_end_of_the_notebook_s_log(self):
        text = write_text_page(self.FINALS, scale="full", later=0.80)
        row = "| RNN, N(0, 1), mean (RNNClassifier) | 1,234 | 2 | 50.00 ± 0.00 |  | 50.00 ± 0.00 |  | 80.61 |"
        assert f"{row} 80.00 ± 0.00 | -0.61 |\n" in text
        assert "other texts" in text and "say nothing" not in text

    @pytest.mark.parametrize(
        ("packed", "words"),
        [
            ([0.60, 0.62], "better, as the notebook says: LSTMPackClassifier against LSTMClassifier +26.50 ("),
            ([0.20, 0.21], "worse, contrary to what the notebook says: LSTMPackClassifier against LSTMClassifier"),
            ([0.30, 0.40], "no significant difference: LSTMPackClassifier against LSTMClassifier +0.50 ("),
            ([0.60], "undecided with one seed: LSTMPackClassifier against LSTMClassifier +26.00 (one seed)"),
        ],
    )
    def test_the_verdict_follows_from_the_interval(self, packed, words):
        text = write_text_page(CUBE | {"lstm_shifted_packed": packed})
        assert f"The notebook's models, held-out accuracy in points: {words}" in text
        shares = "between LSTMClassifier and RNNClassifier, held-out accuracy in points: "
        assert (
            f"{shares}better: cell +6.50 (+0.15 to +12.85), initial vectors +2.00 (+2.00 to +2.00); worse:" in text
        )
        assert "Not trained: RNN, N(0, 1), packed, " in text

    def test_a_smoke_test_claims_nothing(self):
        assert "**Verdict.** A smoke test: the numbers mean nothing." in write_text_page(CUBE, scale="smoke")


class TestFigures:
    def test_factors_stand_by_readout(self):
        table = make_text_rows({"lstm_shifted_last": [0.4, 0.5], "rnn_normal_mean": [0.6], "gru": [0.7, 0.7]})
        (axes,) = figures.factors(table, RNN_NOTEBOOK.labels, "top1").axes
        ticks = [tick.get_text() for tick in axes.get_xticklabels()]
        assert ticks == ["mean", "last", "packed", "with a GRU", "with two layers", "bidirectional"]
        assert [text.get_text() for text in axes.get_legend().texts] == ["RNN, N(0, 1)", "LSTM, N(-0.5, 1)"]
        means = {round(x, 3): y for bar in axes.containers for x, y in [bar.lines[0].get_xydata()[0]]}
        assert means == pytest.approx({-0.225: 60, 1.225: 45, 3.0: 70})
        (half,) = (bar for bar in axes.containers if bar.lines[0].get_xydata()[0][1] == 45)
        low, high = half.lines[2][0].get_segments()[0][:, 1]
        assert (high - low) / 2 == pytest.approx(12.7062 * 5, rel=1e-4)  # the standard error is 5 points

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


def test_a_run_without_averaged_weights_reports_its_raw_ones():
    table = make_text_rows({"gru": [0.7, 0.6]})
    assert rows.final(table, "gru", "top1") == {0: 0.7, 1: 0.6}
    averaged = make_rows("fig9", {"xception": [0.9]})  # whose raw weights have 0
    assert rows.final(averaged, "xception", "top1") == {0: 0.9}


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

    def test_text_models_are_trained_five_times_on_ag_news(self, reproduce, tmp_path):
        where = ("--workdir", tmp_path, "--text-root", "/texts", "--data-root", "/data")
        code, output = reproduce("rnn_notebook", "--scale", "full", *where, "--list")
        lines = output.splitlines()
        assert code == 0 and len(lines) == 75
        assert lines[0] == (
            "python train.py --config=configs/reproduction.py:full/rnn_normal_mean --config.seed=0"
            f" --config.data.root=/texts --workdir={tmp_path}/full/rnn_normal_mean/seed0"
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
            (["rnn_notebook", "--text-root", "/t"], "--text-root: belongs to --scale full; leave it out"),
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
