"""Leaving listed images out of the evaluation, with the file names and numbers of ILSVRC."""

import numpy as np
import pytest
from PIL import Image

from xception_jax import data
from xception_jax.errors import SettingError

NUMBERS = (1, 2, 36, 50000)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classes; the validation images are named as those of ILSVRC."""
    root = tmp_path_factory.mktemp("images")
    for place, number in enumerate(NUMBERS):
        for split, name in (("train", f"n{number}"), ("val", f"ILSVRC2012_val_{number:08d}")):
            path = root / split / ("cat", "dog")[place % 2] / f"{name}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4, 3), 50 * place, np.uint8)).save(path)
    return root


@pytest.fixture
def load(root, tmp_path):
    def run(text):
        path = tmp_path / "blacklist.txt"
        path.write_text(text)
        return data.load("folder", root=str(root), eval_exclude=str(path))

    return run


def numbers(dataset):
    names = [dataset.validation.name(index) for index in range(len(dataset.validation))]
    return sorted(int(name[-13:-5]) for name in names)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("36\n", [1, 2, 50000]),
        ("1\n50000\n\n", [2, 36]),
        ("ILSVRC2012_val_00000002.JPEG\n36\n", [1, 50000]),
        ("dog/ILSVRC2012_val_00000002.JPEG", [1, 36, 50000]),
    ],
)
def test_listed_images_are_left_out(load, root, text, kept):
    dataset = load(text)
    assert numbers(dataset) == kept and len(dataset.train) == 4
    assert f"leaves out the {4 - len(kept)} images" in dataset.notes[-1]
    whole = data.load("folder", root=str(root))
    labels = {whole.validation.name(index): whole.validation[index]["label"] for index in range(4)}
    for index in range(len(kept)):
        assert dataset.validation[index]["label"] == labels[dataset.validation.name(index)]


def test_of_equal_names_the_one_in_the_listed_folder_is_left_out(tmp_path):
    for place, name in enumerate(("train/cat/1", "train/dog/1", "val/cat/1", "val/dog/1", "val/dog/2")):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 50 * place, np.uint8)).save(path)
    listed = tmp_path / "list"
    listed.write_text("dog/1.png\ndog/2")
    dataset = data.load("folder", root=str(tmp_path), eval_exclude=str(listed))
    (left,) = (dataset.validation.name(index) for index in range(len(dataset.validation)))
    assert left.endswith("val/cat/1.png")
    listed.write_text("1.png")
    with pytest.raises(
        SettingError, match=r"lists '1', which is '.*cat/1' or '.*dog/1'; write it with its folder"
    ):
        data.load("folder", root=str(tmp_path), eval_exclude=str(listed))


def test_the_batches_of_training_stay(load, root):
    assert load("36").fingerprint() == data.load("folder", root=str(root)).fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists nothing"),
        ("37\n36\n", r"lists 'ILSVRC2012_val_00000037' and 0 other names that no validation image has"),
        ("1\n2\n36\n50000", "lists all 4 validation images"),
    ],
)
def test_a_wrong_list_is_refused(load, text, message):
    with pytest.raises(SettingError, match=f"eval_exclude = .*{message}"):
        load(text)


def test_a_missing_list_is_refused(root):
    with pytest.raises(SettingError, match="eval_exclude = 'nowhere': cannot be read"):
        data.load("folder", root=str(root), eval_exclude="nowhere")


def test_images_without_files_cannot_be_listed(tmp_path):
    (tmp_path / "list").write_text("1")
    with pytest.raises(SettingError, match="come from no files"):
        data.load("digits", eval_exclude=str(tmp_path / "list"))
