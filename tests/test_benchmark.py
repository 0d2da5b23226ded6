"""Benchmarks: counts against the paper and by hand, rows that make sense, a comparison with scripted peers."""

import argparse
import csv
import dataclasses
import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from xception_jax import __main__, ops
from xception_jax.commands.benchmark import count, device, op, profiler, records, table, versus, workload
from xception_jax.errors import TrainingError, UserError

ROOT = pathlib.Path(__file__).parent.parent
TINY = (
    *(
        "--batch=2",
        "--image-size=8",
        "--rounds=3",
        "--set",
        "num_classes=10",
        "stem_widths=4,4",
        "stem_strides=1,1",
    ),
    *("stem_padding=SAME", "entry_widths=[8]", "middle_blocks=0", "exit_widths=8,8,8"),
)
WORK = workload.Workload(model="xception", batch=2, image_size=8, dtype="float32", settings={})
PEER = versus.Peer(library="timm", model="legacy_xception", python="python", compile=False, amp=True)


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Runs `python -m xception_jax benchmark ...` here, on a device that is quickly measured; the file's rows."""
    monkeypatch.setattr(device, "COPY_ELEMENTS", 2**10)
    monkeypatch.setattr(device, "MATRIX_SIZE", {"cpu": 16})
    monkeypatch.setattr(device, "BUSY_SECONDS", 0.01)
    path = tmp_path / "results" / "speed.csv"

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["xception_jax", "benchmark", *arguments, f"--csv={path}"])
        __main__.main()
        return records.read(path)

    return run


class TestCounts:
    def test_xception_has_its_multiply_accumulates(self):
        work = dataclasses.replace(WORK, image_size=299)
        assert count.macs(workload.forward_jaxpr(work)) == 8_357_403_496

    def test_a_small_network_by_hand(self):
        def network(x, kernel, depthwise, weights):
            conv = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = conv(x, kernel, (2, 2), "SAME")  # [2, 4, 4, 6] of 3 x 3 x 5
            x = jax.jit(lambda x: conv(x, depthwise, (1, 1), "VALID", feature_group_count=6))(
                x
            )  # [2, 2, 2, 6] of 3 x 3
            return lax.scan(lambda x, _: (x @ weights, None), x, None, length=7)[0]  # [2, 2, 2, 6] of 6

        shapes = ((2, 8, 8, 5), (3, 3, 5, 6), (3, 3, 1, 6), (6, 6))
        jaxpr = jax.make_jaxpr(network)(*map(jnp.zeros, shapes)).jaxpr
        assert count.macs(jaxpr) == 2 * 4 * 4 * 6 * 45 + 2 * 2 * 2 * 6 * 9 + 7 * 2 * 2 * 2 * 6 * 6
        depthwise = count.GroupedConv((4, 4), 6, 6, (3, 3), 6, (1, 1), ((0, 0), (0, 0)))
        assert count.grouped_convs(jaxpr) == {depthwise: 1}

    def test_a_condition_counts_its_dearer_branch_and_a_while_loop_is_refused(self):
        def branches(p, x):
            return lax.cond(p, lambda x: x @ x, lambda x: x @ x @ x, x)

        def loop(x):
            return lax.while_loop(lambda x: jnp.all(x < 1), lambda x: x @ x, x)

        x = jnp.zeros((3, 3))
        assert count.macs(jax.make_jaxpr(branches)(True, x).jaxpr) == 54
        with pytest.raises(ValueError, match="while loop holds a product"):
            count.macs(jax.make_jaxpr(loop)(x).jaxpr)

    def test_strides_groups_and_batches_of_a_grouped_convolution(self):
        def network(x, kernel):
            return lax.conv_general_dilated(
                x,
                kernel,
                (2, 1),
                ((1, 0), (0, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=2,
            )

        jaxpr = jax.make_jaxpr(network)(jnp.zeros((2, 8, 7, 4)), jnp.zeros((3, 2, 2, 6))).jaxpr
        (layer,) = count.grouped_convs(jaxpr)
        assert layer == count.GroupedConv((8, 7), 4, 6, (3, 2), 2, (2, 1), ((1, 0), (0, 1)))
        assert str(layer) == "8x7x4 to 6 in 2 groups 3x2 stride 2"


class TestStep:
    def test_rows_are_consistent_and_the_profile_adds_up(self, benchmark, capsys):
        rows = benchmark("step", *TINY, "--profile")
        assert [row["mode"] for row in rows] == ["train", "inference"]
        for row in rows:
            values = {key: float(row[key]) for key in (*records.SECONDS, "images_per_second", "roofline_share")}
            assert 0 < values["seconds_low"] <= values["seconds"] <= values["seconds_high"]
            assert values["images_per_second"] == pytest.approx(2 / values["seconds"], rel=1e-4)
            limits = {
                "arithmetic": float(row["flops_per_second"]) / float(row["peak_flops"]),
                "memory traffic": float(row["bytes_per_second"]) / float(row["peak_bytes"]),
            }
            assert row["bound"] == max(limits, key=limits.get)
            assert values["roofline_share"] == pytest.approx(max(limits.values()), rel=1e-4)
            assert row["rounds"] == "3" and row["device"] == "cpu" and row["jax"] == jax.__version__
            assert row["command"].startswith("python -m xception_jax benchmark step --batch=2")
        flops = [float(row["flops_per_second"]) * float(row["seconds"]) for row in rows]
        assert flops[0] == pytest.approx(3 * flops[1], rel=1e-4)
        printed = capsys.readouterr().out
        assert printed.count("kind of operation") == printed.count("of these ms backward") == 2
        assert "matmul" in printed and "copy/transpose" in printed

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model=resnet"], "error: --model='resnet': choose one of"),
            (["--set", "middle_block=1"], "error: --set middle_block=1: choose one of bn_epsilon"),
            (["--set", "middle_blocks=x"], "error: --set middle_blocks=x: it should be a valid integer"),
            (["--set", "middle_blocks=-1"], "middle_blocks = -1: must be at least 0"),
            (["--image-size=4"], "error: --model=xception --image-size=4: images of (4, 4) pixels are too small"),
            (["--batch=0"], "argument --batch: 0: must be at least 1"),
            (["--against=timm", "--profile"], "error: --profile: shows this package only"),
            (
                ["--against=timm", "--peer-model=Xception"],
                "error: --peer-model=Xception: choose one of legacy_xception",
            ),
            (["--against=keras", "--compile"], "error: --compile: keras is compiled by JAX"),
            (["--against=timm", "--peer-python=/no/python"], "error: --peer-python=/no/python: No such file"),
        ],
    )
    def test_a_mistake_is_one_line(self, failure, arguments, message):
        assert message in failure("step", *arguments)


class TestOp:
    def test_implementations_and_passes_of_each_layer(self, benchmark, monkeypatch):
        layers = {
            count.GroupedConv((6, 6), 4, 4, (3, 3), 4, (1, 1), ((1, 1), (1, 1))): 2,
            count.GroupedConv((6, 6), 4, 4, (3, 3), 2, (2, 2), ((0, 1), (0, 1))): 1,
        }
        monkeypatch.setattr(count, "grouped_convs", lambda jaxpr: layers)
        rows = benchmark("op", *TINY)
        names = [(row["layer"], row["mode"], row["implementation"]) for row in rows]
        assert names == [
            (layer, name, choice)
            for layer in ("6x6x4 depthwise 3x3", "6x6x4 to 4 in 2 groups 3x3 stride 2")
            for name in op.PASSES
            for choice in ops.IMPLEMENTATIONS
        ]
        for row in rows:
            assert row["reference"] == "xla" and float(row["seconds"]) > 0
            assert (float(row["time_ratio"]) == 1) == (row["implementation"] == "xla")

    def test_segments_have_the_shape_of_most_layers(self, benchmark, monkeypatch):
        def layer(size):
            return count.GroupedConv((size, size), 4, 4, (3, 3), 4, (1, 1), ((1, 1), (1, 1)))

        monkeypatch.setattr(count, "grouped_convs", lambda jaxpr: {layer(8): 1, layer(6): 24, layer(4): 2})
        rows = benchmark("op", *TINY, "--segments", "2", "1")
        assert {row["layer"] for row in rows} == {"6x6x4 to 4 in 2 groups 3x3", "6x6x4 to 4 in 1 groups 3x3"}
        assert {row["implementation"] for row in rows} == {"xla", "shift"}

    def test_shapes_are_depthwise_layers(self, benchmark):
        rows = benchmark("op", *TINY, "--shapes", "5x4/2")
        assert {row["layer"] for row in rows} == {"5x5x4 depthwise 3x3 stride 2"}
        assert op.depthwise_layer("112x64/2").padding == ((0, 1), (0, 1))  # SAME, 112 -> 56
        with pytest.raises(argparse.ArgumentTypeError, match="such as 112x64/2"):
            op.depthwise_layer("112x64")

    def test_passes_are_the_values_and_gradients_of_the_convolution(self):
        """y = x k at one pixel, so that dy k and dy x are the gradients."""
        layer = count.GroupedConv((1, 1), 2, 2, (1, 1), 2, (1, 1), ((0, 0), (0, 0)))
        x, kernel, dy = (jnp.full((1, 1, 1, 2), value) for value in (2.0, 3.0, 5.0))
        for conv in op.layer_convs(layer).values():
            values = [float(compute(conv, x, kernel, dy)[0, 0, 0, 0]) for compute in op.PASSES.values()]
            assert values == [6.0, 15.0, 10.0]


# What `versus` starts; it appends its name to a file at each step.
SCRIPT = """
import json, sys
name, path, seconds = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
print("noise", file=sys.stderr)
print(json.dumps({"setup_seconds": 1.5, "versions": {"timm": "1.2"}}), flush=True)
for value in seconds:
    sys.stdin.readline()
    with open(path, "a") as file:
        file.write(name)
    print(json.dumps({"seconds": value}), flush=True)
print("Killed: out of memory", file=sys.stderr)
sys.exit(3)
"""


def scripted_command(tmp_path, name, seconds):
    """What starts a worker that says that its steps took `seconds`, and dies when asked for more."""
    (tmp_path / "worker.py").write_text(SCRIPT)
    command = [sys.executable, "-S", tmp_path / "worker.py", name, tmp_path / "turns", str(seconds)]
    return [str(part) for part in command]


def scripted(tmp_path, name, seconds):
    return versus.Worker("timm", scripted_command(tmp_path, name, seconds))


class TestVersus:
    def test_steps_alternate_and_ratios_are_of_neighbours(self, tmp_path):
        with scripted(tmp_path, "A", [2, 6, 8, 3]) as ours, scripted(tmp_path, "B", [1, 2, 8, 6]) as theirs:
            pairs = versus.alternate(ours, theirs, 4)
        assert (tmp_path / "turns").read_text() == "ABABABAB"
        rows = versus.make_rows(WORK, "train", PEER, (ours.greeting, theirs.greeting), pairs)
        # The ratios 2, 3, 1 and 0.5; the ratio of the medians would be 4.5 / 4.
        assert [rows[0][key] for key in records.RATIO] == [1.5, 0.875, 2.25]
        assert [row["seconds"] for row in rows] == [4.5, 4.0]
        assert [row["library"] for row in rows] == ["xception_jax", "timm"]
        assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
        assert all(row["peer"] == "timm 1.2" and row["setup_seconds"] == 1.5 for row in rows)
        assert rows[1]["images_per_second"] == 0.5 and "time_ratio" not in rows[1]
        assert "time here / time there: 1.5 (quartiles 0.875 to 2.25" in versus.describe(*rows)

    def test_the_command_adds_a_row_for_each_side_and_mode(self, benchmark, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(versus, "own_command", lambda *_: scripted_command(tmp_path, "A", [1, 1, 1]))
        monkeypatch.setattr(versus.Peer, "command", lambda *_: scripted_command(tmp_path, "B", [4, 5, 2]))
        rows = benchmark("step", *TINY, "--against=timm", "--amp")
        assert [(row["mode"], row["library"]) for row in rows] == [
            (mode, library) for mode in ("train", "inference") for library in ("xception_jax", "timm")
        ]
        assert [row["time_ratio"] for row in rows] == ["0.25", "", "0.25", ""]
        assert (
            "note: timm legacy_xception computes in bfloat16, this package in float32" in capsys.readouterr().out
        )

    def test_a_worker_that_dies_gives_its_last_words(self, tmp_path):
        with (
            pytest.raises(TrainingError, match=r"^the timm process ended with code 3: Killed: out of memory$"),
            scripted(tmp_path, "A", [1]) as worker,
        ):
            worker.step()
            worker.step()

    @pytest.mark.parametrize("library", ["timm", "keras"])
    def test_a_missing_library_says_what_to_install(self, library, failure, tmp_path):
        """With -S python sees no installed packages."""
        python = tmp_path / "bare"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
        python.chmod(0o755)
        message = failure("step", *TINY, f"--against={library}", f"--peer-python={python}")
        assert message.startswith(f"error: --against={library}: {python} has no ") and "pip install" in message

    def test_our_worker_speaks_the_protocol(self):
        settings = {"num_classes": 10, "stem_strides": (1, 1), "stem_padding": "SAME", "stem_widths": (4, 4)}
        settings |= {"entry_widths": (8,), "middle_blocks": 0, "exit_widths": (8, 8, 8)}
        work = dataclasses.replace(WORK, settings=settings)
        with versus.Worker("xception_jax", versus.own_command(work, "inference")) as worker:
            assert worker.greeting["versions"] == {"jax": jax.__version__}
            assert worker.greeting["setup_seconds"] > worker.step() > 0


def test_quartiles_lie_between_the_values():
    assert records.spread([4.0, 1.0, 3.0, 2.0, 10.0]) == records.Spread(3.0, 2.0, 4.0)
    assert records.spread([7.0]) == records.Spread(7.0, 7.0, 7.0)


def test_a_busy_machine_is_told_and_recorded(monkeypatch):
    """Of 400 ticks 100 were idle or waiting for a disk."""
    stats = iter(["cpu  100 0 0 500 0 0 0 0 7 7\ncpu0", "cpu  250 50 50 550 50 20 20 10 9 9\ncpu0"])
    monkeypatch.setattr(device, "_cpu_model", lambda: "Z80")
    monkeypatch.setattr(device, "_commit", lambda: "abc")
    monkeypatch.setattr(pathlib.Path, "read_text", lambda path: next(stats))
    assert device.describe().endswith(
        "warning: other programs use 75% of the processors: these times will not hold"
    )


class TestFile:
    def test_rows_are_added_under_one_header(self, tmp_path):
        path = tmp_path / "speed.csv"
        records.append(path, [{"benchmark": "step", "seconds": 1 / 3}])
        records.append(path, [{"benchmark": "op", "rounds": 5}])
        header, *rows = csv.reader(path.read_text().splitlines())
        assert tuple(header) == records.COLUMNS
        assert [row["seconds"] for row in records.read(path)] == ["0.333333", ""] and len(rows) == 2

    def test_other_columns_are_refused_before_anything_is_measured(self, failure, tmp_path):
        path = tmp_path / "results" / "speed.csv"
        path.parent.mkdir()
        path.write_text("benchmark,ms\n")
        assert failure("step").startswith(f"error: --csv={path}: has other columns (batch, bound, busy)")
        assert path.read_text() == "benchmark,ms\n"

    def test_a_file_that_cannot_be_written_is_one_line(self, tmp_path):
        with pytest.raises(UserError, match=r"--csv=.*Is a directory"):
            records.check(tmp_path)
        with pytest.raises(UserError, match="no such file; python -m xception_jax benchmark step writes one"):
            records.read(tmp_path / "none.csv")


class TestTable:
    def test_latest_row_of_each_command(self, tmp_path, capsys):
        step = WORK.columns | {"benchmark": "step", "mode": "train", "command": "one", "device": "H100"}
        step |= {"seconds_low": 0.5, "seconds_high": 2.0, "images_per_second": 2.0, "roofline_share": 0.25}
        step |= {"bound": "arithmetic"}
        records.append(tmp_path / "speed.csv", [step | {"seconds": 1.0}, step | {"seconds": 1.5}])
        ours = step | {"benchmark": "versus", "seconds": 0.001, "reference": "timm m", "time_ratio": 0.5}
        ours |= {"time_ratio_low": 0.25, "time_ratio_high": 0.75, "cpu": "Z80", "cores": 2}
        records.append(tmp_path / "speed.csv", [ours])
        layer = WORK.columns | {"benchmark": "op", "command": "two", "layer": "8x8", "reference": "xla"}
        layer |= {"device": "H100", "implementation": "shift", "seconds": 0.004, "time_ratio": 0.1}
        records.append(tmp_path / "speed.csv", [layer | {"mode": mode} for mode in ("forward", "backward")])
        table.run(type("Arguments", (), {"csv": tmp_path / "speed.csv"}))
        assert capsys.readouterr().out.splitlines() == [
            "| model | images | device | pass | ms (quartiles) | images/s | of the roofline |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            "| xception | 2 x 8 px, float32 | H100 | train | 1,500 (500 to 2,000) | 2 | 25% (arithmetic) |",
            "",
            "| model | images | device | pass | ms (quartiles) | images/s | share of the peer's time |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            "| xception | 2 x 8 px, float32 | Z80, 2 cores | train | 1 (500 to 2,000) | 2 |"
            " 0.5 (0.25 to 0.75) of timm m's |",
            "",
            "xception, 2 x 8 px, float32, H100: ms (share of xla's time)",
            "",
            "| layer | implementation | forward | backward |",
            "| --- | --- | --- | --- |",
            "| 8x8 | shift | 4 (0.1) | 4 (0.1) |",
        ]


class TestProfile:
    def test_time_is_grouped_by_scope_and_kind(self):
        def loss(weights, x):
            with jax.named_scope("entry_0"), jax.named_scope("separable_1"):
                x = jax.nn.relu(x @ weights)
            with jax.named_scope("middle"):
                x = lax.scan(lambda x, _: (jnp.tanh(x @ weights), None), x, None, length=3)[0]
            return jnp.sum(x)

        x = jnp.ones((64, 64))
        compiled = jax.jit(jax.grad(loss)).lower(x, x).compile()
        costs = profiler.profile(lambda: jax.block_until_ready(compiled(x, x)), compiled.as_text())
        layers = profiler.totals(costs, lambda instruction: instruction.layer)
        assert {"entry_0/separable_1", "middle"} <= layers.keys() and min(layers.values()) >= 0
        matmuls = [cost.instruction for cost in costs if cost.instruction.kind == "matmul"]
        assert {(i.layer, i.backward) for i in matmuls} >= {
            ("entry_0/separable_1", False),
            ("entry_0/separable_1", True),
            ("middle", False),
            ("middle", True),
        }
        lines = profiler.report(costs).splitlines()
        assert sum(line.strip().startswith("entry_0/separable_1") for line in lines) == 1

    def test_layers_come_in_the_order_of_their_longest_forward_operation(self):
        def cost(path, seconds):
            return profiler.Cost(profiler.Instruction("fusion", f"jit(f)/{path}/mul", frozenset({"add"})), seconds)

        costs = [
            cost("jvp(last)", 1),
            cost("jvp(first)", 5),
            cost("jvp(last)", 3),
            cost("transpose(jvp(first))", 9),
        ]
        assert profiler.layers_in_order(costs) == ["first", "last"]
        lines = profiler.report(costs).splitlines()
        assert lines[-2].split() == ["first", "14000.00", "77.8%", "9000.00"]

    def test_time_inside_a_loop_is_not_counted_twice(self):
        spans = [(0, 100, "while"), (10, 40, "dot"), (50, 90, "call"), (60, 70, "dot"), (100, 130, "add")]
        assert profiler._own_time(spans) == {"while": 30, "dot": 40, "call": 30, "add": 30}

    @pytest.mark.parametrize(
        ("path", "layer"),
        [
            ("jit(step)/jvp(entry_0)/separable_1/dot_general", "entry_0/separable_1"),
            ("jit(step)/transpose(jvp(entry_0))/separable_1/jit(relu)/max", "entry_0/separable_1"),
            ("jit(step)/transpose(jvp())/middle_3/while/body/closed_call/inner/mul", "middle_3/inner"),
            ("jit(step)/jvp()/reduce_sum", ""),
            ("jit(step)/checkpoint/rematted_computation/stem_0/conv_general_dilated", "stem_0"),
            ("", ""),
        ],
    )
    def test_layer_is_what_the_model_named(self, path, layer):
        assert profiler.Instruction("fusion", path, frozenset({"add"})).layer == layer

    @pytest.mark.parametrize(
        ("opcode", "parts", "primitive", "kind"),
        [
            ("fusion", {"parameter", "dot", "add"}, "add", "matmul"),
            ("convolution", {"convolution"}, "conv_general_dilated", "convolution"),
            ("custom-call", {"custom-call"}, "dot_general", "matmul"),
            ("custom-call", {"custom-call"}, "conv_general_dilated", "convolution"),
            ("custom-call", {"custom-call"}, "top_k", "other"),
            ("fusion", {"parameter", "multiply", "reduce"}, "reduce_sum", "reduce"),
            ("reduce-window", {"reduce-window"}, "reduce_window_max", "pool"),
            ("fusion", {"parameter", "select-and-scatter"}, "select_and_scatter_add", "pool"),
            ("fusion", {"parameter", "transpose", "bitcast"}, "transpose", "copy/transpose"),
            ("copy", {"copy"}, "", "copy/transpose"),
            ("fusion", {"parameter", "multiply", "slice"}, "mul", "elementwise/fusion"),
            ("while", {"while"}, "while", "other"),
        ],
    )
    def test_kind_is_what_the_operation_is_made_of(self, opcode, parts, primitive, kind):
        assert profiler.Instruction(opcode, f"jit(f)/{primitive}", frozenset(parts)).kind == kind


def test_command_line(tmp_path):
    """The one start from outside; the others run here."""
    command = [sys.executable, "-m", "xception_jax", "benchmark", "table", f"--csv={tmp_path / 'none.csv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: --csv={tmp_path / 'none.csv'}: no such file")


def test_the_readme_has_the_measured_tables():
    """As `benchmark table` prints them from results/speed.csv."""
    rows = table.latest(records.read(ROOT / "results/speed.csv"))
    readme = (ROOT / "README.md").read_text()
    for benchmark, columns in table.TABLES.items():
        assert table.markdown(columns, [row for row in rows if row["benchmark"] == benchmark]) in readme
