"""Benchmarks: rows that make sense, counts by hand, and one set of columns for all files."""

import argparse
import csv
import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from xception_jax import __main__, ops
from xception_jax.commands import device, steps, summary, traffic
from xception_jax.commands.benchmark import op, rows, table
from xception_jax.commands.summary import GroupedConv
from xception_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
TINY = ("--batch=2", "--image-size=8", "--rounds=3", "--set", "num_classes=10", "stem_widths=4,4")
TINY += ("stem_strides=1,1", "stem_padding=SAME", "entry_widths=8,", "middle_blocks=0", "exit_widths=8,8,8")


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Runs `python -m xception_jax benchmark ...` here; the rows of the file."""
    monkeypatch.setattr(device, "BUSY_SECONDS", 0.01)
    path = tmp_path / "results" / "speed.csv"

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["xception_jax", "benchmark", *arguments, f"--csv={path}"])
        __main__.main()
        return rows.read(path)

    return run


class TestCounts:
    def test_a_small_network_by_hand(self):
        def network(x, kernel, depthwise, weights):
            conv = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = conv(x, kernel, (2, 2), "SAME")  # [2, 4, 4, 6] of 3 x 3 x 5
            x = jax.jit(lambda x: conv(x, depthwise, (1, 1), "VALID", feature_group_count=6))(x)  # [2, 2, 2, 6]
            return lax.scan(lambda x, _: (x @ weights, None), x, None, length=7)[0]  # [2, 2, 2, 6] of 6

        shapes = ((2, 8, 8, 5), (3, 3, 5, 6), (3, 3, 1, 6), (6, 6))
        jaxpr = jax.make_jaxpr(network)(*map(jnp.zeros, shapes)).jaxpr
        assert summary.macs(jaxpr) == 2 * 4 * 4 * 6 * 45 + 2 * 2 * 2 * 6 * 9 + 7 * 2 * 2 * 2 * 6 * 6
        depthwise = GroupedConv((4, 4), 6, 6, (3, 3), 6, (1, 1), ((0, 0), (0, 0)))
        assert summary.grouped_convs(jaxpr) == {depthwise: 1}

    def test_a_condition_counts_its_most_expensive_branch_and_a_while_loop_is_refused(self):
        def branches(p, x):
            return lax.cond(p, lambda x: x @ x, lambda x: x @ x @ x, x)

        def loop(x):
            return lax.while_loop(lambda x: jnp.all(x < 1), lambda x: x @ x, x)

        x = jnp.zeros((3, 3))
        assert summary.macs(jax.make_jaxpr(branches)(True, x).jaxpr) == 54
        with pytest.raises(ValueError, match="while loop contains a product"):
            summary.macs(jax.make_jaxpr(loop)(x).jaxpr)

    def test_strides_groups_and_batches_of_a_grouped_convolution(self):
        dimensions = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 2}
        conv = functools.partial(lax.conv_general_dilated, **dimensions)
        x, kernel = jnp.zeros((2, 8, 7, 4)), jnp.zeros((3, 2, 2, 6))
        jaxpr = jax.make_jaxpr(lambda x, kernel: conv(x, kernel, (2, 1), ((1, 0), (0, 1))))(x, kernel).jaxpr
        (layer,) = summary.grouped_convs(jaxpr)
        assert layer == GroupedConv((8, 7), 4, 6, (3, 2), 2, (2, 1), ((1, 0), (0, 1)))
        assert str(layer) == "8x7x4 to 6 in 2 groups 3x2 stride 2"


# A loop over 7 matrices [64, 64] in an array: slices one, multiplies x by it, and keeps a number of each pass.
LOOP = """\
HloModule jit_loop

%fused_slice (param_0: f32[7,64,64], param_1: s32[]) -> f32[64,64] {
  %param_0 = f32[7,64,64]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %slice = f32[1,64,64]{2,1,0} dynamic-slice(%param_0, %param_1), dynamic_slice_sizes={1,64,64}
  ROOT %bitcast = f32[64,64]{1,0} bitcast(%slice)
}

%body (arg: (s32[], f32[64,64], f32[7], f32[7,64,64])) -> (s32[], f32[64,64], f32[7], f32[7,64,64]) {
  %arg = (s32[], f32[64,64]{1,0}, f32[7]{0}, /*index=3*/f32[7,64,64]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[64,64]{1,0} get-tuple-element(%arg), index=1
  %kept = f32[7]{0} get-tuple-element(%arg), index=2
  %all = f32[7,64,64]{2,1,0} get-tuple-element(%arg), index=3
  %one = f32[64,64]{1,0} fusion(%all, %i), kind=kLoop, calls=%fused_slice
  %dot = f32[64,64]{1,0} dot(%x, %one), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %new = f32[1]{0} slice(%x), slice={[0:1]}
  %update = f32[7]{0} dynamic-update-slice(%kept, %new, %i), metadata={op_name="while/body"}
  ROOT %out = (s32[], f32[64,64]{1,0}, f32[7]{0}, f32[7,64,64]{2,1,0}) tuple(%i, %dot, %update, %all)
}

%condition (arg.1: (s32[], f32[64,64], f32[7], f32[7,64,64])) -> pred[] {
  %arg.1 = (s32[], f32[64,64]{1,0}, f32[7]{0}, f32[7,64,64]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %limit = s32[] constant(7)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (start: (s32[], f32[64,64], f32[7], f32[7,64,64])) -> bf16[64,64] {
  %start = (s32[], f32[64,64]{1,0}, f32[7]{0}, f32[7,64,64]{2,1,0}) parameter(0)
  %while = (s32[], f32[64,64]{1,0}, f32[7]{0}, f32[7,64,64]{2,1,0}) while(%start), condition=%condition, body=%body
  %result = f32[64,64]{1,0} get-tuple-element(%while), index=1
  ROOT %convert = bf16[64,64]{1,0} convert(%result)
}
"""
MATRIX = 4 * 64 * 64
# Slicing fusion; product; slice of one number; update of one number at an index; comparison.
PASS = (2 * MATRIX + 4) + 3 * MATRIX + 2 * 4 + (4 + 4 + 4) + (4 + 4 + 1)


class TestTraffic:
    @pytest.mark.parametrize(
        ("known", "passes"), [(', backend_config={"known_trip_count":{"n":"7"}}', 7), ("", 1)]
    )
    def test_a_loop_by_hand(self, known, passes):
        text = LOOP.replace("body=%body\n", f"body=%body{known}\n")
        assert traffic.count(text) == passes * PASS + MATRIX + MATRIX // 2

    def test_what_runs_in_branches_calls_and_the_background(self):
        text = """\
%small (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %sine = f32[8]{0} sine(%p)
}

%large (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  %square = f32[8]{0} multiply(%q, %q)
  ROOT %called = f32[8]{0} call(%square), to_apply=%small
}

ENTRY %main (flag: s32[], x: f32[8]) -> f32[8] {
  %flag = s32[] parameter(0)
  %x = f32[8]{0} parameter(1)
  %start = ((f32[8]{0}), f32[8]{0}, s32[]) async-start(%x), calls=%small
  %done = f32[8]{0} async-done(%start)
  ROOT %choice = f32[8]{0} conditional(%flag, %done, %x), branch_computations={%small, %large}
}
"""
        assert traffic.count(text) == 64 + (64 + 64)

    @pytest.mark.parametrize(
        ("function", "shapes", "expected"),
        [
            (lambda x: 2 * x + 1, [(1000,)], 2 * 4000),
            (jnp.matmul, [(8, 16), (16, 4)], 4 * (8 * 16 + 16 * 4 + 8 * 4)),
        ],
    )
    def test_compiled_programs(self, function, shapes, expected):
        compiled = jax.jit(function).lower(*map(jnp.zeros, shapes)).compile()
        assert traffic.count(compiled.as_text()) == expected


class TestStep:
    def test_rows_counts_and_trace(self, benchmark, capsys, tmp_path):
        measured = benchmark("step", *TINY, f"--profile={tmp_path / 'trace'}")
        assert [row["what"] for row in measured] == ["train", "inference"]
        for row in measured:
            assert 0 < float(row["seconds_low"]) <= float(row["seconds"]) <= float(row["seconds_high"])
            assert row["by"].startswith("xception (num_classes=10 stem_widths=(4, 4) ")
            assert row["inputs"] == "8 px, float32" and row["images"] == "2" and row["ratio"] == ""
            assert row["device"] == device.name() and f"jax {jax.__version__}" in row["versions"]
            assert row["command"].startswith("python -m xception_jax benchmark step --batch=2")
        assert len(list((tmp_path / "trace").rglob("*.xplane.pb"))) == 2
        printed = capsys.readouterr().out
        flops = [float(line.split()[1]) for line in printed.splitlines() if "GFLOP of the model" in line]
        assert flops[0] == pytest.approx(3 * flops[1], rel=1e-3)
        assert printed.count("GB read and written") == 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model=resnet"], "error: --model=resnet: choose a model of images, xception, "),
            (
                ["--set", "middle_block=1"],
                "error: --set middle_block = 1: is not a setting; did you mean 'middle_bl",
            ),
            (["--set", "middle_blocks=x"], "error: --set middle_blocks = 'x': input should be a valid integer"),
            (["--set", "dtype=bfloat16"], "error: --set dtype=bfloat16: write --dtype=bfloat16"),
            (["--image-size=4"], "error: --image-size=4: images of 4 x 4 pixels"),
            (["--batch=0"], "argument --batch: 0: must be at least 1"),
        ],
    )
    def test_a_mistake_is_one_line(self, failure, arguments, message):
        assert message in failure("step", *arguments)


class TestOp:
    def test_implementations_and_passes_of_each_layer(self, benchmark):
        measured = benchmark("op", *TINY, "--shapes", "6x4/1", "6x4/2:2")
        names = [(row["inputs"], row["what"], row["by"]) for row in measured]
        assert names == [
            (layer, name, choice)
            for layer in ("6x6x4 depthwise 3x3, float32", "6x6x4 to 4 in 2 groups 3x3 stride 2, float32")
            for name in op.PASSES
            for choice in ops.IMPLEMENTATIONS
        ]
        for row in measured:
            assert row["reference"] == ("" if row["by"] == "xla" else "xla") and float(row["seconds"]) > 0

    def test_the_layers_of_a_model(self):
        flags = {"model": "xception", "batch": 1, "dtype": "float32", "image_size": 64}
        work = steps.from_arguments(argparse.Namespace(settings=["middle_blocks=2"], **flags))
        layers = op.find_layers(argparse.Namespace(shapes=None), work)
        assert sum(layers.values()) == 34 - 6 * 3 and all(layer.depthwise for layer in layers)

    def test_shapes_from_the_command_line(self):
        assert op.parse_layer("112x64/2") == GroupedConv((112, 112), 64, 64, (3, 3), 64, (2, 2), ((0, 1), (0, 1)))
        assert op.parse_layer("19x8/1:4").groups == 4
        for text, message in (("112x64", "such as 112x64/2"), ("19x8/1:3", "must divide the 8 channels")):
            with pytest.raises(argparse.ArgumentTypeError, match=message):
                op.parse_layer(text)

    def test_passes_are_the_values_and_gradients_of_the_convolution(self):
        """y = x k at one pixel, so that dy k and dy x are the gradients."""
        layer = GroupedConv((1, 1), 2, 2, (1, 1), 2, (1, 1), ((0, 0), (0, 0)))
        x, kernel, dy = (jnp.full((1, 1, 1, 2), value) for value in (2.0, 3.0, 5.0))
        for conv in op.layer_convs(layer).values():
            values = [float(compute(conv, x, kernel, dy)[0, 0, 0, 0]) for compute in op.PASSES.values()]
            assert values == [6.0, 15.0, 10.0]


def test_a_busy_machine_is_told(monkeypatch):
    """Of 400 ticks 100 were idle or waiting for a disk."""
    stats = iter(["cpu  100 0 0 500 0 0 0 0 7 7\ncpu0", "cpu  250 50 50 550 50 20 20 10 9 9\ncpu0"])
    monkeypatch.setattr(device, "_cpu_model", lambda: "Z80")
    monkeypatch.setattr(pathlib.Path, "read_text", lambda path: next(stats))
    assert "warning: other programs use 75% of the processors" in device.describe()


class TestRows:
    def test_medians_and_ratios_have_quartiles(self):
        row = rows.make("train", "a", "1 px", images=2, seconds=[2, 6, 8, 3], reference=("b", [1, 2, 8, 6]))
        assert [row[key] for key in rows.SECONDS] == [4.5, 2.75, 6.5]
        # The ratios are 2, 3, 1 and 0.5; the ratio of the medians would be 4.5 / 4.
        assert [row[key] for key in rows.RATIO] == [1.5, 0.875, 2.25] and row["reference"] == "b"
        assert rows.spread([7.0]) == (7.0, 7.0, 7.0)

    def test_rows_are_added_under_one_header(self, tmp_path):
        path = tmp_path / "speed.csv"
        rows.append(path, [{"what": "train", "seconds": 1 / 3}])
        rows.append(path, [{"what": "forward", "images": 5}])
        header, *lines = csv.reader(path.read_text().splitlines())
        assert tuple(header) == rows.COLUMNS and len(header) <= 15 and len(lines) == 2
        assert [row["seconds"] for row in rows.read(path)] == ["0.333333", ""]

    def test_other_columns_are_refused_before_anything_is_measured(self, failure, tmp_path):
        path = tmp_path / "results" / "speed.csv"
        path.parent.mkdir()
        path.write_text("benchmark,ms\n")
        assert failure("step").startswith(f"error: --csv={path}: has other columns (benchmark, by, command)")
        assert path.read_text() == "benchmark,ms\n"

    def test_a_file_that_cannot_be_used_is_one_line(self, tmp_path):
        with pytest.raises(UserError, match=r"--csv=.*Is a directory"):
            rows.check(tmp_path)
        with pytest.raises(UserError, match="no such file; python -m xception_jax benchmark step writes one"):
            rows.read(tmp_path / "none.csv")


def test_the_table_has_the_latest_row_of_each_command(tmp_path, capsys):
    path = tmp_path / "speed.csv"
    step = {"what": "train", "by": "xception", "inputs": "8 px", "images": 2, "device": "H100", "command": "one"}
    step |= {"seconds_low": 0.5, "seconds_high": 2.0}
    ratio = {"reference": "timm m", "ratio": 0.5, "ratio_low": 0.25, "ratio_high": 0.75}
    layer = step | ratio | {"what": "forward", "by": "shift", "inputs": "8x8", "images": 1, "reference": "xla"}
    others = [step | {"seconds": 0.001, "command": "two"} | ratio, layer | {"seconds": 0.004}]
    rows.append(path, [step | {"seconds": 1.0}, step | {"seconds": 1.5}, *others])
    table.run(argparse.Namespace(csv=path))
    heading = [
        "|  | by | inputs | device | median (quartiles) | images/s | ratio (quartiles) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    assert capsys.readouterr().out.splitlines() == [
        *heading,
        "| train | xception | 2 x 8 px | H100 | 1,500 ms (500 to 2,000) | 1.33 |  |",
        "| train | xception | 2 x 8 px | H100 | 1 ms (500 to 2,000) | 2,000 | 0.5 (0.25 to 0.75) of timm m |",
        "",
        *heading,
        "| forward | shift | 8x8 | H100 | 4 ms (500 to 2,000) | 250 | 0.5 (0.25 to 0.75) of xla |",
        "",
    ]


def test_command_line(tmp_path):
    """The one start from outside; the others run here."""
    command = [sys.executable, "-m", "xception_jax", "benchmark", "table", f"--csv={tmp_path / 'none.csv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: --csv={tmp_path / 'none.csv'}: no such file")


def test_the_pages_have_the_measured_times():
    """docs/speed.md has the table of steps that `benchmark table` prints, the README a line of it."""
    measured = [row for row in table.latest(rows.read(ROOT / "results/speed.csv")) if row["what"] in steps.MODES]
    assert table.markdown(measured) in (ROOT / "docs/speed.md").read_text()
    ours = [row for row in measured if (row["what"], row["by"]) == ("train", "xception")]
    alone = ours[0]
    ratio = {row["reference"]: float(row["ratio"]) for row in reversed(ours) if row["ratio"]}  # the first counts
    parts = [f"{1000 * float(alone['seconds']):,.0f} ms", f"{ratio['timm legacy_xception']:.3f} times"]
    readme = (ROOT / "README.md").read_text()
    assert [part for part in [*parts, f"{ratio['keras Xception']:.3f} times"] if part not in readme] == []
