"""Metrics against scikit-learn, and by hand where it has none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, top_k_accuracy_score

from xception_jax import metrics


def random_batch(examples, classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, size=(examples, classes)).astype(np.float32), rng.integers(classes, size=examples)


def cross_entropy(logits, labels, **settings):
    objective = metrics.Objective(num_classes=logits.shape[1], **settings)
    return objective.loss(jnp.asarray(logits), objective.targets(jnp.asarray(labels, jnp.int32)))


def sums(logits, labels, mask=None, loss=None):
    """The package's sums under jit, of plain cross-entropy unless a loss is given."""
    logits, labels = jnp.asarray(logits), jnp.asarray(labels, jnp.int32)
    loss = cross_entropy(logits, labels) if loss is None else jnp.asarray(loss)
    mask = None if mask is None else jnp.asarray(mask, jnp.float32)
    return jax.jit(metrics.classification_sums)(loss, logits, labels, mask)


def by_sklearn(logits, labels):
    classes = range(logits.shape[1])
    odds = np.exp(logits.astype(np.float64))
    return {
        "loss": log_loss(labels, odds / odds.sum(1, keepdims=True), labels=classes),
        "top1": top_k_accuracy_score(labels, logits, k=1, labels=classes),
        "top5": top_k_accuracy_score(labels, logits, k=5, labels=classes),
    }


def softmax_loss(logits, targets):
    """- sum of target * log softmax, [N], in float64."""
    logits = logits.astype(np.float64)
    return -(targets * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1)


def check(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("examples, classes", [(400, 10), (300, 1000), (1, 6)])
def test_against_sklearn(examples, classes):
    logits, labels = random_batch(examples, classes)
    check(metrics.compute(sums(logits, labels)), by_sklearn(logits, labels))


@pytest.mark.parametrize("padding", [0.0, np.nan, np.inf])
def test_padding_does_not_count(padding):
    logits, labels = random_batch(64, 10)
    mask = np.random.default_rng(1).random(64) < 0.7
    loss = np.where(mask, cross_entropy(logits, labels), padding)
    dirty = np.where(mask[:, None], logits, padding).astype(np.float32)
    actual = sums(dirty, labels, mask, loss.astype(np.float32))
    assert float(actual["count"]) == mask.sum()
    check(metrics.compute(actual), by_sklearn(logits[mask], labels[mask]))


def test_a_batch_of_padding_adds_nothing():
    logits, labels = random_batch(4, 10)
    assert {name: float(value) for name, value in sums(logits, labels, np.zeros(4)).items()} == {
        "loss": 0,
        "top1": 0,
        "top5": 0,
        "count": 0,
    }


def test_batches_add_up_to_the_whole():
    logits, labels = random_batch(50, 10)
    total = sums(logits[:32], labels[:32])
    last = np.zeros((32, 10), np.float32)
    last[:18] = logits[32:]
    total = metrics.total([total, sums(last, np.append(labels[32:], [0] * 14), np.arange(32) < 18)])
    assert float(total["count"]) == 50
    check(metrics.compute(total), by_sklearn(logits, labels))


def test_compute_divides_by_the_count():
    assert metrics.compute({"loss": 3.0, "top1": 1.0, "top5": 2.0, "grad_norm": 8.0, "count": 4.0}) == {
        "loss": 0.75,
        "top1": 0.25,
        "top5": 0.5,
        "grad_norm": 2.0,
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing(smoothing):
    logits, labels = random_batch(32, 8)
    targets = (1 - smoothing) * np.eye(8)[labels] + smoothing / 8
    actual = cross_entropy(logits, labels, label_smoothing=smoothing)
    np.testing.assert_allclose(actual, softmax_loss(logits, targets), rtol=1e-5)


def test_cross_entropy_of_bfloat16_and_of_huge_logits_is_in_float32():
    logits = jnp.array([[1e4, -1e4, 0.0]], jnp.bfloat16)
    loss = cross_entropy(logits, [2])
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [float(jnp.bfloat16(1e4))])


def test_the_weight_of_its_class_weighs_an_example():
    logits, labels = random_batch(200, 4)
    weights = (1.0, 0.0, 2.5, 0.5)
    odds = np.exp(logits.astype(np.float64))
    by_sklearn = log_loss(
        labels,
        odds / odds.sum(1, keepdims=True),
        labels=range(4),
        sample_weight=np.array(weights)[labels],
        normalize=False,
    )
    actual = cross_entropy(logits, labels, class_weights=weights)
    assert float(actual.sum()) == pytest.approx(by_sklearn, rel=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_with_five_classes_or_fewer_every_example_is_a_top5_hit(classes):
    logits, labels = random_batch(40, classes)
    actual = metrics.compute(sums(logits, labels))
    assert actual["top5"] == 1
    assert actual["top1"] == pytest.approx((logits.argmax(1) == labels).mean())


def test_a_tie_is_no_hit_for_all_that_share_it():
    labels = np.arange(20)
    actual = metrics.compute(sums(np.zeros((20, 20), np.float32), labels))
    check(actual, {"loss": np.log(20), "top1": 1 / 20, "top5": 5 / 20})


class TestSeveralLabels:
    def batch(self, examples=60, classes=7):
        logits, _ = random_batch(examples, classes)
        labels = np.random.default_rng(2).random((examples, classes)) < 0.3
        return logits, labels.astype(np.uint8)

    @pytest.mark.parametrize("weights", [None, (1.0, 0.0, 2.0, 0.5, 1.0, 1.0, 3.0)])
    def test_the_loss_is_the_sum_of_logistic_losses(self, weights):
        logits, labels = self.batch()
        objective = metrics.Objective(num_classes=7, multilabel=True, class_weights=weights)
        actual = objective.loss(jnp.asarray(logits), objective.targets(jnp.asarray(labels)))
        odds = 1 / (1 + np.exp(-logits.astype(np.float64)))
        by_class = [
            (weights or np.ones(7))[c] * log_loss(labels[i : i + 1, c], odds[i : i + 1, c], labels=[0, 1])
            for i in range(60)
            for c in range(7)
        ]
        np.testing.assert_allclose(actual, np.reshape(by_class, (60, 7)).sum(1), rtol=1e-5)

    @pytest.mark.parametrize("settings", [{"multilabel": True}, {"label_smoothing": 0.1}])
    def test_weights_of_the_measure_alone_leave_the_loss_as_it_is(self, settings):
        logits, labels = self.batch()
        labels = labels if settings.get("multilabel") else labels.argmax(axis=1)
        plain = cross_entropy(logits, labels, **settings)
        weights = {"class_weights": (1.0, 0.0, 2.0, 0.5, 1.0, 1.0, 3.0)}
        unweighted = cross_entropy(logits, labels, **settings, **weights, weighted_loss=False)
        np.testing.assert_array_equal(unweighted, plain)
        assert not np.allclose(cross_entropy(logits, labels, **settings, **weights), plain)

    def test_measures_against_sklearn_and_numpy(self):
        logits, labels = self.batch()
        labels[:20] = logits[:20] > 0  # all right
        mask = np.arange(60) % 5 != 0
        objective = metrics.Objective(num_classes=7, multilabel=True)
        loss = np.where(mask, 1.5, np.nan).astype(np.float32)
        sums = objective.sums(*map(jnp.asarray, (loss, logits, labels, mask.astype(np.float32))))
        first = np.take_along_axis(labels, logits.argmax(1)[:, None], axis=1)[:, 0]
        expected = {
            "loss": 1.5,
            "top1": first[mask].mean(),
            "exact": accuracy_score(labels[mask], (logits > 0)[mask].astype(int)),
        }
        assert 0.2 < expected["exact"] < 0.6
        check(metrics.compute(sums), expected)

    def test_huge_logits_of_bfloat16_are_summed_in_float32(self):
        objective = metrics.Objective(num_classes=2, multilabel=True)
        loss = objective.loss(jnp.array([[1e4, -1e4]], jnp.bfloat16), jnp.array([[0.0, 1.0]]))
        np.testing.assert_allclose(loss, [2 * float(jnp.bfloat16(1e4))])


class TestLabelOffset:
    """Leading logits that stand for no class of the dataset, as in TensorFlow's Inception models."""

    WEIGHTS = (2.0, 0.0, 0.5, 1.0, 3.0, 1.0)

    def batch(self, multilabel, offset):
        """(logits [60, offset + 6], labels of the dataset's 6 classes, the same labels counted as the logits)."""
        logits, labels = random_batch(60, offset + 6)
        labels %= 6
        if not multilabel:
            return logits, labels, labels + offset
        labels = (np.random.default_rng(3).random((60, 6)) < 0.4).astype(np.uint8)
        return logits, labels, np.concatenate([np.zeros((60, offset), np.uint8), labels], axis=1)

    @pytest.mark.parametrize("offset, weights", [(1, WEIGHTS), (3, None)])
    @pytest.mark.parametrize("settings", [{"multilabel": True}, {"label_smoothing": 0.1}], ids=", ".join)
    def test_it_is_a_shift_of_the_labels(self, settings, weights, offset):
        logits, labels, shifted = self.batch(settings.get("multilabel", False), offset)
        weights = None if weights is None else (0.0,) * offset + weights
        settings = settings | {"num_classes": offset + 6, "class_weights": weights}
        mask = (np.arange(60) % 4 > 0).astype(np.float32)

        def measures(labels, **more):
            objective = metrics.Objective(**settings, **more)
            targets = objective.targets(jnp.asarray(labels))
            loss = objective.loss(jnp.asarray(logits), targets)
            sums = objective.evaluation_sums(loss, *map(jnp.asarray, (logits, labels, mask)))
            return targets, loss, sums, objective.sums(loss, jnp.asarray(logits), jnp.asarray(labels))

        actual, expected = measures(labels, label_offset=offset), measures(shifted)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
        assert [float(sums["count"]) for sums in actual[2:]] == [45, 60] and float(actual[2]["top1"]) > 0

    @pytest.mark.parametrize("multilabel", [False, True])
    def test_targets_and_loss_by_hand(self, multilabel):
        objective = metrics.Objective(
            num_classes=4, multilabel=multilabel, label_offset=1, class_weights=(0.0, 5.0, 1.0, 2.0)
        )
        labels = np.array([[1, 0, 1]], np.uint8) if multilabel else np.array([2])
        targets = objective.targets(jnp.asarray(labels))
        np.testing.assert_array_equal(targets, np.float32([[0, 1, 0, 1]] if multilabel else [[0, 0, 0, 1]]))
        logits = np.log(np.array([[4.0, 1.0, 3.0, 2.0]]))
        # Of probability x / (1 + x) for each class, or x / 10.
        several = 5 * np.log(2) + 1 * np.log(4) + 2 * np.log(3 / 2)
        expected = several if multilabel else 2 * np.log(10 / 2)
        np.testing.assert_allclose(objective.loss(jnp.float32(logits), targets), [expected], rtol=1e-6)

    def test_a_prediction_of_no_class_is_wrong(self):
        """The background class is the highest logit of the first image and the second of the other."""
        logits, labels = np.float32([[9, 1, 0, 0, 0, 0], [8, 9, 0, 0, 0, 0]]), np.array([0, 0])
        objective = metrics.Objective(num_classes=6, label_offset=1)
        sums = objective.sums(jnp.zeros(2), jnp.asarray(logits), jnp.asarray(labels))
        assert metrics.compute(sums) == {"loss": 0, "top1": 0.5, "top5": 1}

    @pytest.mark.parametrize("offset", [0, 1, 2])
    def test_probabilities_are_those_of_the_datasets_classes(self, offset):
        logits, _ = random_batch(5, offset + 3)
        odds = np.exp(logits.astype(np.float64))
        one = metrics.Objective(num_classes=offset + 3, label_offset=offset)
        several = metrics.Objective(num_classes=offset + 3, label_offset=offset, multilabel=True)
        expected = (odds / odds.sum(1, keepdims=True))[:, offset:]
        np.testing.assert_allclose(one.probabilities(jnp.asarray(logits)), expected, rtol=1e-5)
        np.testing.assert_allclose(
            several.probabilities(jnp.asarray(logits)), (odds / (1 + odds))[:, offset:], rtol=1e-5
        )


def brute_force(logits, labels, weights, k=100):
    """(sum, number) of the average precisions, image by image and place by place."""
    total, number = 0.0, 0
    for scores, row in zip(logits, labels, strict=True):
        gains = [float(weights[c]) for c in range(len(row)) if row[c]]
        ideal = sum(sorted(gains, reverse=True)[:k])
        if ideal == 0:
            continue
        order = sorted(range(len(row)), key=lambda c: (np.inf if np.isnan(scores[c]) else -scores[c], c))
        hits, reached = 0, 0.0
        for place, c in enumerate(order[:k], start=1):
            if row[c] and not np.isnan(scores[c]):
                hits += 1
                reached += float(weights[c]) * hits / place
        total, number = total + reached / ideal, number + 1
    return total, number


@functools.cache
def ranking_sums(sharding):
    return jax.jit(functools.partial(metrics.ranking_sums, logits_sharding=sharding))


class TestMeanAveragePrecision:
    def batch(self, case, examples=16):
        """(logits, labels, weights) of an adversarial case."""
        rng = np.random.default_rng(5)
        classes = {"few classes": 12, "more than 100 labels": 400}.get(case, 240)
        share = {"more than 100 labels": 0.6, "no labels": 0.0}.get(case, 0.1)
        logits = rng.normal(size=(examples, classes)).astype(np.float32)
        labels = (rng.random((examples, classes)) < share).astype(np.uint8)
        weights = rng.integers(0, 4, classes) / 2  # a quarter of them 0
        if case == "ties":
            logits = np.round(logits)  # -0 and 0 among them
        elif case == "all equal":
            logits[:] = -1.0
        elif case == "NaN":
            logits[rng.random(logits.shape) < 0.3] = np.nan
            logits[:2], labels[:2] = np.nan, 1
        elif case == "infinite":
            logits[rng.random(logits.shape) < 0.3] = np.inf
            logits[rng.random(logits.shape) < 0.3] = -np.inf
        elif case == "labels without weight":
            labels[:6] *= weights == 0
        elif case == "no weights at all":
            weights[:] = 0
        return logits, labels, weights

    def sums(self, logits, labels, weights, mask=None, sharding=None):
        mask = np.ones(len(logits)) if mask is None else mask
        batch = jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask, jnp.float32)
        sums = ranking_sums(sharding)(*batch, class_weights=jnp.asarray(weights, jnp.float32))
        return {name: float(value) for name, value in sums.items()}

    @pytest.mark.parametrize("classes", [2, 30, 99])
    def test_against_sklearn(self, classes):
        logits, _ = random_batch(40, classes)
        labels = (np.random.default_rng(1).random((40, classes)) < 0.3).astype(np.uint8)
        labels[0] = 0
        expected = [average_precision_score(y, x) for x, y in zip(logits, labels, strict=True) if y.any()]
        actual = self.sums(logits, labels, np.ones(classes))
        assert actual["map100_count"] == len(expected) < 40
        assert actual["map100"] == pytest.approx(sum(expected), rel=1e-5)

    CASES = (
        "random",
        "few classes",
        "more than 100 labels",
        "no labels",
        "ties",
        "all equal",
        "NaN",
        "infinite",
        "labels without weight",
        "no weights at all",
    )

    @pytest.mark.parametrize("case", CASES)
    def test_against_brute_force(self, case):
        batch = self.batch(case)
        expected = brute_force(*batch)
        assert self.sums(*batch) == pytest.approx(dict(zip(("map100", "map100_count"), expected, strict=True)))

    def test_by_hand(self):
        """Right at places 1 and 3, of weights 2 and 1, and never the last: (2 * 1 + 1 * 2/3) / (2 + 1 + 4)."""
        logits, labels = np.array([[4.0, 3.0, 2.0, np.nan]]), np.array([[1, 0, 1, 1]])
        actual = self.sums(logits.astype(np.float32), labels.astype(np.uint8), np.array([2.0, 9.0, 1.0, 4.0]))
        assert actual == pytest.approx({"map100": (2 + 2 / 3) / 7, "map100_count": 1})

    def test_the_best_order_has_a_precision_of_1_for_any_number_of_labels(self):
        weights = np.linspace(0.1, 2, 300)
        labels = np.arange(300)[None] >= np.array([[299], [250], [150], [0]])  # 1, 50, 150, 300 labels
        logits = labels * weights[None]
        actual = self.sums(logits.astype(np.float32), labels.astype(np.uint8), weights)
        assert actual == pytest.approx({"map100": 4, "map100_count": 4})

    def test_logits_that_are_no_numbers_have_a_precision_of_0(self):
        actual = self.sums(np.full((3, 9), np.nan, np.float32), np.ones((3, 9), np.uint8), np.ones(9))
        assert actual == {"map100": 0, "map100_count": 3}

    def test_batches_add_up_and_padding_does_not_count(self):
        logits, labels, weights = self.batch("labels without weight")
        mask = np.arange(16) % 3 != 1
        parts = [self.sums(*(x[i : i + 8] for x in (logits, labels)), weights, mask[i : i + 8]) for i in (0, 8)]
        total = metrics.total([part | {"count": 8.0} for part in parts])
        expected, number = brute_force(logits[mask], labels[mask], weights)
        assert 0 < number < mask.sum()
        assert metrics.compute(total) == {"map100": pytest.approx(expected / number)}
        padded = np.where(mask[:, None], logits, np.nan)
        assert self.sums(padded, labels, weights, mask)["map100"] == pytest.approx(expected)

    def test_a_measure_of_no_example_is_left_out(self):
        sums = {"loss": 6.0, "map100": 0.0, "map100_count": 0.0, "count": 3.0}
        assert metrics.compute(sums) == {"loss": 2.0}

    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.parametrize("shape", [(8,), (2, 4)])
    def test_devices_that_share_the_classes_find_the_same(self, case, shape):
        mesh = jax.make_mesh(shape, ("data", "model")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))
        sharding = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
        batch = self.batch(case)
        assert self.sums(*batch, sharding=sharding) == pytest.approx(self.sums(*batch), rel=1e-6)

    def test_an_evaluation_has_it_and_a_training_step_has_not(self):
        logits, labels, weights = self.batch("random")
        objective = metrics.Objective(num_classes=240, multilabel=True, class_weights=tuple(weights))
        batch = [jnp.asarray(x) for x in (np.ones(16, np.float32), logits, labels, np.ones(16, np.float32))]
        evaluation, training = objective.evaluation_sums(*batch), objective.sums(*batch)
        assert evaluation.keys() - training.keys() == {"map100", "map100_count"}
        assert float(evaluation["map100"]) == pytest.approx(brute_force(logits, labels, weights)[0])
        unweighted = metrics.Objective(num_classes=240, multilabel=True).evaluation_sums(*batch)
        assert float(unweighted["map100"]) == pytest.approx(brute_force(logits, labels, np.ones(240))[0])
        single = metrics.Objective(num_classes=240).evaluation_sums(*batch[:2], jnp.argmax(batch[2], 1), batch[3])
        assert single.keys() == {"loss", "top1", "top5", "count"}
