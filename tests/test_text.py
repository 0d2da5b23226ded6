"""Texts from files to batches, and runs on them: order, padding, records, SIGKILL, resuming, prediction."""

import csv
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys

import absl.flags
import jax
import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import xception_jax
from configs import ag_news, docstrings
from xception_jax import __main__, loop, recipe, task
from xception_jax.data import pipeline
from xception_jax.data.text import corpus
from xception_jax.data.text.docstrings import PACKAGES
from xception_jax.data.text.inputs import TextData, Texts
from xception_jax.errors import SettingError, UserError

ROOT = pathlib.Path(__file__).parent.parent
WORDS = {"animal": "cat dog horse cow sheep", "plant": "oak fir rose moss fern"}
COMMON = ["the", "a", "of", "and", "is", "in"]


def write_table(path, count, seed=0):
    """Texts of 1 to 40 words, in which one word in four tells the class."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for number in range(count):
            label = list(WORDS)[number % 2]
            words = [
                rng.choice(COMMON if rng.random() < 0.75 else WORDS[label].split())
                for _ in range(rng.integers(1, 41))
            ]
            rows.writerow([" ".join([*words[:-1], rng.choice(WORDS[label].split())]), label])
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("texts") / "train.csv", 300)


def config(table, **changes):
    """A recipe of 40 steps of a small GRU."""
    config = docstrings.get_config()
    config.update_from_flattened_dict(
        {
            "data.name": "table",
            "data.root": str(table),
            "data.holdout": 0.2,
            "data.max_length": 32,
            "data.length_multiple": 8,
            "data.min_freq": 1,
            "batch_size": 16,
            "eval_batch_size": 16,
            "total_steps": 40,
            "log_every_steps": 10,
            "evaluate_every_steps": 20,
            "model.embedding_size": 8,
            "model.hidden_size": 8,
            "schedule.base_lr": 0.02,
            "schedule.name": "constant",
            "schedule.lr_rule": "none",
            "averaging.decay": 0.8,
            **changes,
        }
    )
    config.total_epochs = config.evaluate_every_epochs = None
    return config


@pytest.fixture(scope="module")
def built(table):
    return task.build(recipe.parse(config(table)))


class TestBatches:
    def test_a_batch_is_as_long_as_its_longest_text(self, built):
        """In multiples of 8, up to 32 tokens; every array is as `batch_spec` says but for the length."""
        lengths = built.dataset.train.lengths
        with_length = built.train_batches(0)
        seen = set()
        for _ in range(20):
            batch = next(with_length)
            steps = batch["tokens"].shape[1]
            longest = batch["length"].max()
            assert steps == -(-longest // 8) * 8 and longest <= 32
            padding = np.arange(steps)[None] >= batch["length"][:, None]
            assert np.all(batch["tokens"][padding] == 0) and np.all(batch["tokens"][~padding] > 0)
            seen.add(steps)
        with_length.close()
        assert max(seen) == 32 < lengths.max() and built.batch_spec(train=True)["tokens"].shape == (16, 32)

    def test_short_texts_make_short_batches(self, built):
        batches = built.evaluation_batches()
        first = next(batches)
        batches.close()
        order = built.dataset.validation.lengths[:16]
        assert first["length"].tolist() == np.minimum(order, 32).tolist()

    def test_padding_does_not_change_which_texts_meet(self, built):
        """The order is that of the same pipeline without lengths."""
        reader = built.reader(built.dataset.train, substitute=True)

        def first_token(example, rng):
            return {"token": example["tokens"][0], "label": example["label"], "unreadable": example["unreadable"]}

        plain = pipeline.train_batches(reader, first_token, batch_size=16, seed=0, start_step=3)
        padded = built.train_batches(3)
        for _ in range(30):  # over the end of an epoch, which has 15 steps
            assert next(plain)["token"].tolist() == next(padded)["tokens"][:, 0].tolist()
        plain.close(), padded.close()

    @pytest.mark.parametrize(("hosts", "workers"), [(4, 0), (1, 2)])
    def test_shares_of_hosts_make_the_global_batch(self, built, hosts, workers):
        """With the same length on all hosts, whatever is read by worker processes."""
        absl.flags.FLAGS.mark_as_parsed()  # Grain's
        reader = built.reader(built.dataset.train, substitute=True)
        padding = pipeline.Padding(built.inputs.lengths(built.dataset.train), built.inputs.pad)
        settings = {"padding": padding, "batch_size": 16, "seed": 0, "start_step": 2}
        transform = built.inputs.train_transform
        parts = [
            pipeline.train_batches(
                reader, transform, **settings, num_workers=workers, process_index=host, process_count=hosts
            )
            for host in range(hosts)
        ]
        whole = built.train_batches(2)
        for _ in range(4):
            shares, batch = [next(part) for part in parts], next(whole)
            for name in batch:
                np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), batch[name])
        for iterator in (*parts, whole):
            iterator.close()

    def test_padding_of_the_last_batch_is_no_longer_than_its_texts(self, built):
        """Rows without a text are copies of one of the batch, so they do not lengthen it."""
        *_, last = built.evaluation_batches()
        real = last["mask"] > 0
        assert not real.all() and last["length"].max() == last["length"][real].max()

    def test_an_evaluation_has_every_text_once(self, built):
        counted, labels = 0, []
        for batch in built.evaluation_batches():
            counted += batch["mask"].sum()
            labels += batch["label"][batch["mask"] > 0].tolist()
        assert counted == len(built.dataset.validation) and labels == list(built.dataset.validation.labels)


class TestInputs:
    def test_a_record_makes_the_same_inputs(self, built):
        record = json.loads(json.dumps(built.inputs.record()))
        assert Texts.from_record(record) == built.inputs
        assert pickle.loads(pickle.dumps(built.inputs.pad)).__self__ == built.inputs

    def test_texts_of_a_user(self, built):
        batch = built.inputs.from_user(["The cat!", "", "unheard of " * 30])
        vocabulary = built.inputs.vocabulary
        the, cat, unknown = (vocabulary.encode([word])[0] for word in ("the", "cat", "nonsense"))
        assert batch["length"].tolist() == [3, 1, 32] and batch["tokens"].shape == (3, 32)
        assert batch["tokens"][0, :3].tolist() == [the, cat, unknown] and not batch["tokens"][0, 3:].any()
        assert batch["tokens"][1, 0] == unknown == vocabulary.unknown

    @pytest.mark.parametrize(
        ("raw", "message"),
        [("one", r"pass a list, \[text\]"), ([], "texts is empty"), (["a", 7], "one is of type int")],
    )
    def test_what_is_no_list_of_texts(self, built, raw, message):
        with pytest.raises(ValueError, match=message):
            built.inputs.from_user(raw)

    def test_the_overview_says_what_texts_there_are(self, built):
        notes = " | ".join(built.dataset.notes)
        assert f"vocabulary of {len(built.inputs.vocabulary)} tokens" in notes
        assert "texts with more than max_length = 32 tokens, which are cut off: " in notes
        assert "0.0% of the tokens of the validation texts are unknown" in notes

    def test_texts_without_tokens_are_counted(self, tmp_path):
        path = tmp_path / "table.csv"
        path.write_text("text,label\n" + "oak,plant\n dog,animal\n" * 20 + '"",plant\n" ",animal\n')
        dataset = Texts.load(TextData(name="table", root=str(path), holdout=0.2))
        assert "texts without tokens, which are read as one unknown token: 2" in dataset.notes

    def test_vectors_of_a_file_are_the_initial_ones(self, table, tmp_path):
        (tmp_path / "vectors.txt").write_text("cat 1 2 3\ndog 4 5 6\nzebra 7 8 9\n")
        changes = {"data.embeddings": str(tmp_path / "vectors.txt"), "model.embedding_trained": False}
        wide = config(table, **changes)
        with pytest.raises(SettingError, match=r"config\.model\.embedding_size = 8: .*has 3"):
            task.build(recipe.parse(wide))
        with wide.ignore_type():
            wide.model.embedding_size, wide.total_steps = None, 2  # that of the file
        built = task.build(recipe.parse(wide))
        assert any("of the vocabulary has a vector in" in note for note in built.dataset.notes)
        result = loop.train(wide, tmp_path / "run")
        assert result.step == 2
        model = xception_jax.load(tmp_path / "run", weights="raw").model
        cat, oak = built.inputs.vocabulary.encode(["cat", "oak"])
        vectors = np.asarray(model.embedding[...])
        assert vectors[cat].tolist() == [1, 2, 3] and np.all(np.isfinite(vectors[oak]))
        (tmp_path / "vectors.txt").unlink()  # a run that has begun does not need them
        wide.total_steps, wide.model.embedding_size = 3, 3
        assert loop.train(wide, tmp_path / "run").step == 3


@pytest.fixture(autouse=True)
def plain_types():
    """The types of whole runs."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    """(workdir, result) of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("text_run") / "run"
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return workdir, loop.train(config(table), workdir)


class TestRuns:
    def test_it_learns_and_predicts(self, run):
        workdir, result = run
        assert result.step == 40 and result.evaluation["averaged"]["top1"] > 0.9
        trained = xception_jax.load(workdir)
        probabilities = trained.predict(["the horse", "moss of the rose", "", "ein Pferd \N{HORSE}"])
        assert trained.class_names == ("animal", "plant")
        assert probabilities[0, 0] > 0.7 and probabilities[1, 1] > 0.7
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
        assert (workdir / "inputs/vocabulary.txt").read_text() == trained.inputs.vocabulary.to_text()

    def test_the_log_has_tokens_per_second(self, run):
        rows = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
        rates = [row["tokens_per_second"] / row["examples_per_second"] for row in rows if row["kind"] == "train"]
        assert len(rates) == 4 and all(10 < rate < 30 for rate in rates)

    def test_a_killed_run_resumes_to_the_same_bits(self, run, table, tmp_path):
        """On 8 devices, as the run of the fixture."""
        program = (
            f"import test_text; test_text.loop.train(test_text.config({str(table)!r}), {str(tmp_path / 'run')!r})"
        )
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        command = [sys.executable, "-c", program]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line.startswith("step 30/40"):
                    process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        resumed = loop.train(config(table), tmp_path / "run")
        assert resumed.fingerprint == run[1].fingerprint and resumed.evaluation == run[1].evaluation

    def test_commands_evaluate_and_predict(self, run, capsys, monkeypatch, tmp_path):
        monkeypatch.setattr("sys.argv", ["", "evaluate", f"--workdir={run[0]}", "--checkpoint=latest"])
        __main__.main()
        loss = run[1].evaluation["averaged"]["loss"]
        assert f"averaged weights: loss {loss:.4f}" in capsys.readouterr().out
        (tmp_path / "lines.txt").write_text("\ufeffthe fern\n\n")
        arguments = ["predict", f"--workdir={run[0]}", "a cow", f"--file={tmp_path / 'lines.txt'}"]
        monkeypatch.setattr("sys.argv", ["", *arguments])
        __main__.main()
        first, second = capsys.readouterr().out.splitlines()
        assert first.startswith("animal ") and first.endswith(" | a cow")
        assert second.startswith("plant ") and second.endswith(" | the fern")

    def test_a_run_goes_on_with_its_own_vocabulary(self, table, tmp_path, capsys, monkeypatch):
        """Also if its texts have changed; another vocabulary is refused, and leaves config.json as it was."""
        other, directory = write_table(tmp_path / "other.csv", 300, seed=1), tmp_path / "run"
        other.write_text(other.read_text().replace("moss", "lichen").replace("oak", "lichen"))
        loop.train(config(table, total_steps=2), directory)
        vocabulary = (directory / "inputs/vocabulary.txt").read_text()
        settings = (directory / "config.json").read_text()
        (tmp_path / "another.txt").write_text(vocabulary.replace("moss", "lichen"))
        with pytest.raises(UserError, match=r"another\.txt': is not the vocabulary .* has 'moss' for 'lichen'"):
            loop.train(config(other, **{"data.vocabulary": str(tmp_path / "another.txt")}), directory)
        assert (directory / "config.json").read_text() == settings
        monkeypatch.setattr("sys.argv", ["", "evaluate", f"--workdir={directory}", f"--data_root={other}"])
        __main__.main()
        assert "averaged weights: loss" in capsys.readouterr().out
        assert loop.train(config(other, total_steps=4), directory).step == 4
        assert "examples or labels have changed since the checkpoint" in capsys.readouterr().out
        assert (directory / "inputs/vocabulary.txt").read_text() == vocabulary


@pytest.mark.parametrize("module", [ag_news, docstrings])
def test_recipes_run_their_smoke_variant(module, tmp_path):
    config = module.get_config("smoke")
    if module is ag_news:
        config.data.root = str(tmp_path)
        for split, count in (("train", 40), ("test", 12)):
            rows = [
                f'"{1 + number % 4}","Title {number}","Some ""text"" about {number % 7}"'
                for number in range(count)
            ]
            (tmp_path / f"{split}.csv").write_text("\n".join(rows) + "\n")
    result = loop.train(config, tmp_path / "run")
    assert result.step == 4 and result.num_examples == (
        12 if module is ag_news else len(corpus.load(corpus.TextSources()).validation.texts)
    )
    names = {ag_news: ("World", "Sports", "Business", "Sci/Tech"), docstrings: tuple(PACKAGES.values())}
    trained = xception_jax.load(tmp_path / "run")
    assert trained.class_names == names[module] and trained.predict(["Some text"]).shape == (1, len(names[module]))


@pytest.mark.parametrize("variant", ["", "rnn", "lstm", "packed_lstm"])
def test_recipes_of_ag_news(variant):
    parsed = recipe.parse(ag_news.get_config(variant))
    lesson = {"": (64, "max"), "rnn": (16, "mean"), "lstm": (16, "last"), "packed_lstm": (16, "packed")}
    assert (parsed.batch_size, parsed.model["readout"]) == lesson[variant]
    assert parsed.data.vocabulary_order == ("notebook" if variant else "pad_first")


@pytest.mark.slow
def test_the_docstrings_recipe_reaches_its_accuracy(tmp_path):
    """The recipe's claim, beside TF-IDF of one and two words with logistic regression on the same sentences."""
    command = [sys.executable, "train.py", "--config=configs/docstrings.py", f"--workdir={tmp_path / 'run'}"]
    one_device = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run(command, cwd=ROOT, env=one_device, check=True)
    trained = xception_jax.load(tmp_path / "run")
    assert all(values["top1"] >= 0.77 for values in trained.evaluation.values())
    texts = corpus.load(corpus.TextSources())
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = vectorizer.fit_transform(texts.train.texts)
    classifier = LogisticRegression(C=10, solver="saga", tol=1e-3).fit(features, texts.train.labels)
    accuracy = classifier.score(vectorizer.transform(texts.validation.texts), texts.validation.labels)
    print("logistic regression:", accuracy, "recipe:", trained.evaluation)
    predicted = trained.predict(texts.validation.texts).argmax(axis=1)
    assert np.mean(predicted == texts.validation.labels) == pytest.approx(trained.evaluation["averaged"]["top1"])
    assert 0.77 < accuracy < 0.83
