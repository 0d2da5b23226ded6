"""`python -m xception_jax summary`: layers and totals, held to the arithmetic of figure 5 and to timm."""

import contextlib
import io
import re
import signal
import sys

import pytest

from xception_jax import __main__


def summary(*arguments):
    """What the command prints."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", ["xception_jax", "summary", *arguments])
        __main__.main()
    return printed.getvalue()


@pytest.fixture(scope="module")
def printed():
    return summary()


def rows(printed):
    """The table's lines as lists of cells."""
    table = printed.split("\n\n")[1].splitlines()
    return [re.split(r"\s{2,}", line) for line in table[1:]]


def number(text):
    return int(text.replace(",", ""))


class TestXception:
    def test_totals(self, printed):
        assert "parameters: 22,855,952 trained" in printed and "22,910,480, as Keras" in printed
        assert "multiply-adds: 8,357,403,496" in printed
        assert "activations: 35,825,968" in printed  # timm's benchmark tables say 35.83 M

    def test_layers_add_up(self, printed):
        weights, macs, activations = (
            sum(map(number, column)) for column in list(zip(*rows(printed), strict=True))[3:]
        )
        assert weights == 20_752_424 + 2_048_000  # kernels, and the classifier's without its bias
        assert (macs, activations) == (8_357_403_496, 35_825_968)

    def test_there_are_36_layers_4_shortcuts_and_a_classifier(self, printed):
        kinds = [row[1] for row in rows(printed)]
        assert kinds.count("3x3 depthwise") == kinds.count("1x1") == 34
        assert kinds.count("1x1 / 2") == 4 and kinds[:2] == ["3x3 / 2", "3x3"] and kinds[-1] == "dense"

    @pytest.mark.parametrize(
        ("layer", "output", "macs"),
        [
            ("entry_0/separable_0", "147 x 147 x 128", 189_467_712),
            ("middle_3/separable_2", "19 x 19 x 728", 193_689_496),
        ],
    )
    def test_a_separable_convolution_is_two_lines(self, printed, layer, output, macs):
        depthwise, pointwise = (row for row in rows(printed) if row[0] == layer)
        assert depthwise[1] == "3x3 depthwise" and pointwise[2] == output
        assert number(depthwise[4]) + number(pointwise[4]) == macs


def test_settings_and_size():
    printed = summary("--image-size", "64", "--set", "middle_blocks=1", "segments=2", "num_classes=10")
    assert "one image of 64 x 64 pixels" in printed
    assert {row[1] for row in rows(printed)} >= {"3x3 in 2 groups"} and rows(printed)[-1][2] == "10"


def test_a_scanned_middle_flow_counts_every_module():
    same = ("--image-size", "64", "--set", "middle_blocks=2")
    scanned, plain = summary(*same, "scan_middle=True"), summary(*same)
    assert [row[1:] for row in rows(scanned)] == [row[1:] for row in rows(plain)]


def test_an_unknown_model_is_one_line(capsys):
    with pytest.raises(SystemExit):
        summary("--model", "exception")
    assert re.fullmatch(r"error: --model=exception: choose a model of images, .*\n", capsys.readouterr().err)


def test_ctrl_c_is_one_line(monkeypatch):
    monkeypatch.setattr(__main__.summary, "run", lambda _: signal.default_int_handler(signal.SIGINT, None))
    with pytest.raises(SystemExit, match=r"\Ainterrupted\Z"):
        summary()
