"""The C++ runner: the bits that Python gives, or a message that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx.parser import parse_model
from safetensors.numpy import load_file, save_file

Array = NDArray[Any]
Arrays = dict[str, Array]
SOURCE = Path(__file__).parents[2] / "runner"
STEPS, HEIGHT = 6, 6

# name: inputs, outputs, weights, body. Four blocks, with a weight of their own, are added below.
FILES = {
    "prologue": (
        "float[b,2,s,4] x, float[b] t, int64[b] y",
        "float[b,n,16] h, float[b,1,16] c",
        ["w_in", "w_t", "w_y"],
        """grid = Constant <value_ints = [0, -1, 8]> () rows = Reshape (x, grid)
        h = MatMul (rows, w_in) axes = Constant <value_ints = [1, 2]> ()
        t3 = Unsqueeze (t, axes) scaled = Mul (t3, w_t) label = Gather (w_y, y)
        one = Constant <value_ints = [1]> () label3 = Unsqueeze (label, one)
        c = Add (scaled, label3)""",
    ),
    "epilogue": (
        "float[b,n,16] h, float[b,1,16] c",
        "float[b,4,s,4] out",
        ["w_out"],
        """a = Add (h, c) b = MatMul (a, w_out)
        grid = Constant <value_ints = [0, 4, -1, 4]> () out = Reshape (b, grid)""",
    ),
    "delta": ("float[b,n,16] o, float[b,n,16] i", "float[b,n,16] d", [], "d = Sub (o, i)"),
    "predict_0": ("float[b,n,16] d, float[b,n,16] i", "float[b,n,16] o", [], "o = Add (d, i)"),
    "predict_1": (
        "float[b,n,16] d, float[b,n,16] before, float trend, float[b,n,16] i",
        "float[b,n,16] o",
        [],
        "a = Sub (d, before) b = Mul (a, trend) e = Add (d, b) o = Add (e, i)",
    ),
    "predict_3": (
        "float[b,n,16] d, float[b,n,16] b1, float[b,n,16] b2, float[3] w, float[b,n,16] i",
        "float[b,n,16] o",
        [],
        """a0 = Constant <value_ints = [0]> () a1 = Constant <value_ints = [1]> ()
        a2 = Constant <value_ints = [2]> () w0 = Gather (w, a0) w1 = Gather (w, a1)
        w2 = Gather (w, a2) t0 = Mul (d, w0) t1 = Mul (b1, w1) t2 = Mul (b2, w2)
        s1 = Add (t0, t1) s2 = Add (s1, t2) o = Add (s2, i)""",
    ),
}
for block in range(4):
    FILES[f"block_{block}"] = (
        "float[b,n,16] h, float[b,1,16] c",
        "float[b,n,16] next",
        [f"w_{block}"],
        f"a = Add (h, c) b = MatMul (a, w_{block}) d = Tanh (b) next = Add (h, d)",
    )
SHAPES = {"w_in": (8, 16), "w_t": (16,), "w_y": (10, 16), "w_out": (16, 16)}
MACS = {"paper": 10.0, "full": 12.0}
SPANS = [(2, 4), (0, 2)]
FULL = "refresh_2_4_0_2"
TABLE = [FULL, *["cached_2_4"] * 2, FULL, *["cached_0_2"] * 2]
LONG = [FULL, FULL, "cached_2_4", FULL, "cached_2_4", "cached_0_2"]


def read(*refreshes: int, weights: Sequence[float] = ()) -> dict[str, Any]:
    """A cached row of today's schema."""
    row = {"reads": list(refreshes), "weights": [list(weights)] if weights else []}
    return row | {"branches": {}, "fit": None}


def full(basis: Sequence[float] = (), gains: Sequence[float] = ()) -> dict[str, Any]:
    fit = {"basis": list(basis), "gains": list(gains)} if gains else None
    return read() | {"fit": fit}


WEIGHED = [
    *(full(), full(), read(1, 0, weights=(1.4, -0.4, 0)), full()),
    *(read(3, 1, 0, weights=(1.7, -0.9, 0.3)), read(3, 1, weights=(0.8, 0.1, 0))),
]
FITTED = [
    *(full(gains=[1.0]), full([1.0], [1.7, 1.6]), read(1, 0, weights=(1, -0.1, 0))),
    *(full([1.0, 0.2], [0.8, 1.1, 0.1]), *[read(3, 1, 0, weights=(1, 0.4, -0.7))] * 2),
]
# name: schema, deltas that are weighed, the variants that run, what else the rows say.
FORMS: dict[str, tuple[int, int, list[str], list[dict[str, Any]]]] = {
    "order 0": (1, 0, TABLE, [{} for _ in TABLE]),
    "order 1": (1, 1, TABLE, [{"trend": 0.7} if "cached" in name else {} for name in TABLE]),
    "reuse": (2, 0, TABLE, [full(), read(0), read(0), full(), read(3), read(3)]),
    "weights": (2, 3, LONG, WEIGHED),
    "fit": (2, 3, LONG, FITTED),
}


def names_in(signature: str) -> list[str]:
    return [word.split()[-1] for word in signature.split(", ")]


def write_segment(folder: Path, name: str, places: dict[str, tuple[int, int]]) -> dict[str, Any]:
    inputs, outputs, weights, body = FILES[name]
    header = f'<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => ({outputs})'
    model = parse_model(f"{header} {{ {body} }}")
    for weight in weights:
        tensor = model.graph.initializer.add(name=weight, data_type=onnx.TensorProto.FLOAT)
        tensor.dims.extend(SHAPES.get(weight, (16, 16)))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.safetensors")
        tensor.external_data.add(key="offset", value=str(places[weight][0]))
        tensor.external_data.add(key="length", value=str(places[weight][1]))
    file = f"segments/{name}.onnx"
    (folder / file).write_bytes(model.SerializeToString())
    return {"name": name, "file": file, "inputs": names_in(inputs), "outputs": names_in(outputs)}


def write_weights(path: Path) -> dict[str, tuple[int, int]]:
    """Byte offset and length of each weight in the file."""
    random = np.random.default_rng(0)
    shapes = {f"w_{block}": (16, 16) for block in range(4)} | SHAPES
    save_file({k: random.normal(0, 0.2, v).astype("f4") for k, v in shapes.items()}, path)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8:start])
    spans = {k: v["data_offsets"] for k, v in entries.items() if k != "__metadata__"}
    return {name: (start + first, last - first) for name, (first, last) in spans.items()}


def call(segment: str, inputs: str, outputs: str) -> dict[str, Any]:
    return {"segment": segment, "inputs": inputs.split(), "outputs": outputs.split()}


def variant(kind: str, spans: list[tuple[int, int]], form: str) -> dict[str, Any]:
    calls = [call("prologue", "x t y", "h0 c")]
    skipped = set(range(*spans[0])) if kind == "cached" else set()
    calls += [call(f"block_{i}", f"h{i} c", f"h{i + 1}") for i in range(4) if i not in skipped]
    for a, b in spans:
        d, glue = f"delta_{a}_{b}_0", call("delta", f"h{b} h{a}", f"delta_{a}_{b}_0")
        if kind == "cached":
            schema, taken, _, _ = FORMS[form]
            older = f"{d}_before trend " if schema == 1 else f"{d}_before_1 {d}_before_2 weights_0 "
            glue = call(f"predict_{taken}", f"{d} {older if taken else ''}h{a}", f"h{b}")
        calls.insert(1 + (a if kind == "cached" else len(calls) - 1), glue)
    calls.append(call("epilogue", "h4 c", "out"))
    deltas = [f"delta_{a}_{b}_0" for a, b in spans] if kind == "refresh" else []
    name = "_".join([kind, *(f"{a}_{b}" for a, b in spans)])
    macs = {key: value / (2 if kind == "cached" else 1) for key, value in MACS.items()}
    entry = {"name": name, "kind": kind, "calls": calls}
    return entry | {"results": ["out", {"literal": 2}], "deltas": deltas, "macs": macs}


def write_bundle(folder: Path, form: str = "reuse") -> dict[str, Any]:
    (folder / "segments").mkdir(parents=True)
    places = write_weights(folder / "weights.safetensors")
    stream = {"dtype": "float32", "shape": ["batch", "2*(height//2)", 16]}
    sample = {"dtype": "float32", "shape": ["batch", 2, "height", 4]}
    schema, taken, table, rows = FORMS[form]
    plan: dict[str, Any] = {"schema": schema, "format": "onnx", "steps": STEPS}
    plan["order" if schema == 1 else "taken"] = taken
    plan["dimensions"] = {"batch": [1, 8], "height": [2, None]}
    plan["inputs"] = [
        {"name": "x", "role": "sample", **sample},
        {"name": "t", "role": "timestep", "dtype": "float32", "shape": ["batch"]},
        {"name": "y", "role": "data", "dtype": "int64", "shape": ["batch"]},
    ]
    streams = [f"h{i}" for i in range(5)] + [f"delta_{a}_{b}_0" for a, b in SPANS]
    plan["values"] = dict.fromkeys(streams, stream)
    plan["segments"] = [write_segment(folder, name, places) for name in FILES]
    plan["variants"] = [variant("refresh", SPANS, form), variant("refresh", [], form)]
    plan["variants"] += [variant("cached", [span], form) for span in SPANS]
    plan["table"] = [{"variant": a} | b for a, b in zip(table, rows, strict=True)]
    files = [f"segments/{name}.onnx" for name in FILES] + ["weights.safetensors"]
    plan["files"] = {name: {"bytes": (folder / name).stat().st_size} for name in files}
    (folder / "plan.json").write_text(json.dumps(plan))
    return plan


def trajectory(batch: int, guidance: float | None) -> Arrays:
    random = np.random.default_rng(1)
    rows = batch * (1 if guidance is None else 2)
    tensors: Arrays = {
        "sample": random.normal(0, 1, (batch, 2, HEIGHT, 4)).astype("f4"),
        "steps:t": np.repeat(np.linspace(1, 0, STEPS, dtype="f4")[:, None], rows, 1),
        "input:y": np.arange(rows, dtype="i8"),
        "sampler.sample": random.uniform(0.8, 1, STEPS).astype("f4"),
        "sampler.output": random.normal(0, 0.3, (STEPS, 2)).astype("f4"),
    }
    if guidance is not None:
        tensors["guidance"] = np.array(guidance, dtype="f4")
    return tensors


def sessions(folder: Path, names: list[str]) -> dict[str, onnxruntime.InferenceSession]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    key = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(key, str(folder))
    files = {name: folder / "segments" / f"{name}.onnx" for name in names}
    return {name: onnxruntime.InferenceSession(file, options) for name, file in files.items()}


def reference(folder: Path, plan: dict[str, Any], given: Arrays, plain: bool) -> Array:
    """The trajectory as the format states it, by numpy and ONNX Runtime's Python."""
    models = sessions(folder, list(FILES))
    variants = {entry["name"]: entry for entry in plan["variants"]}
    x, outs = given["sample"], []
    held: dict[str, list[Array]] = {}  # newest first; of a fit its coefficients
    plain_row = {"variant": "refresh"}
    for i, row in enumerate([plain_row] * STEPS if plain else plan["table"]):
        chosen = variants[row["variant"]]
        values = given_deltas(held, row) | {"t": given["steps:t"][i], "y": given["input:y"]}
        values["x"] = np.concatenate([x, x]) if "guidance" in given else x
        for one in chosen["calls"]:
            taken = names_in(FILES[one["segment"]][0])
            feed = dict(zip(taken, (values[name] for name in one["inputs"]), strict=True))
            values |= zip(one["outputs"], models[one["segment"]].run(None, feed), strict=True)
        for delta in chosen["deltas"]:
            held[delta] = taken_in(held.get(delta, []), values[delta], row.get("fit"))
        outs.append(first_channels(values["out"], given))
        x = given["sampler.sample"][i] * x
        for factor, out in zip(given["sampler.output"][i], outs[::-1], strict=False):
            x = x + factor * out
    return x


def given_deltas(held: dict[str, list[Array]], row: dict[str, Any]) -> Arrays:
    """What a cached row knows by name: the newest deltas that it reads, and their weights."""
    values: Arrays = {"trend": np.array(row.get("trend", 0), dtype="f4")}
    for name, deltas in held.items():
        for age, suffix in enumerate(["", "_before_1", "_before_2"]):
            values[name + suffix] = deltas[age] if age < len(deltas) else deltas[0]
        values[f"{name}_before"] = values[f"{name}_before_1"]
    for stream, weights in enumerate(row.get("weights", [])):
        values[f"weights_{stream}"] = np.array(weights, dtype="f4")
    return values


def taken_in(held: list[Array], delta: Array, fit: dict[str, Any] | None) -> list[Array]:
    if fit is None:
        return [delta, *held]
    error = delta
    for value, coefficient in zip(fit["basis"], held, strict=True):
        error = error - np.float32(value) * coefficient
    held = [*held, *[np.zeros_like(delta)] * (len(fit["gains"]) - len(held))]
    return [c + np.float32(gain) * error for c, gain in zip(held, fit["gains"], strict=True)]


def first_channels(out: Array, given: Arrays) -> Array:
    if "guidance" in given:
        conditional, unconditional = np.split(out, 2)
        out = unconditional + given["guidance"] * (conditional - unconditional)
    return out[:, :2]


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built once."""
    headers = Path(os.environ.get("ORT_INCLUDE", SOURCE.parent / ".venv" / "onnxruntime-headers"))
    if missing := [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]:
        pytest.skip(f"building the runner needs {', '.join(missing)}")
    if not headers.is_dir():
        pytest.skip(f"ONNX Runtime's headers are not in {headers}: `make runner` fetches them")
    folder = tmp_path_factory.mktemp("runner")
    settings = [f"-DORT_INCLUDE={headers}", f"-DPython3_EXECUTABLE={sys.executable}"]
    settings += ["-DCMAKE_CXX_FLAGS=-Werror", "-S", str(SOURCE), "-B", str(folder / "build")]
    for step in (settings, ["--build", str(folder / "build")]):
        subprocess.run(["cmake", *step], check=True, stdout=subprocess.PIPE)
    return folder / "build" / "runner"


def run(runner: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    paths = [folder / "bundle", folder / "in.safetensors", folder / "out.safetensors"]
    return subprocess.run([runner, *paths, *options], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("plain", [False, True], ids=["table", "plain"])
@pytest.mark.parametrize(("batch", "guidance"), [(1, None), (3, None), (2, 1.7)])
@pytest.mark.parametrize("form", FORMS)
def test_the_sample_has_the_bits_of_python(
    runner: Path, tmp_path: Path, form: str, batch: int, guidance: float | None, plain: bool
) -> None:
    plan = write_bundle(tmp_path / "bundle", form)
    given = trajectory(batch, guidance)
    save_file(given, tmp_path / "in.safetensors")
    done = run(runner, tmp_path, *(["--plain"] if plain else []))
    assert done.returncode == 0, done.stderr
    sample = load_file(tmp_path / "out.safetensors")["sample"]
    expected = reference(tmp_path / "bundle", plan, given, plain)
    assert sample.shape == expected.shape
    assert sample.tobytes() == expected.astype("f4").tobytes()


def test_the_report_names_variants_and_adds_up_macs(runner: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    save_file(trajectory(2, 1.5), tmp_path / "in.safetensors")
    done = run(runner, tmp_path, "--threads", "2", "--no-prepack")
    report = json.loads(done.stdout)
    assert [step["variant"] for step in report["steps"]] == TABLE
    assert report["dimensions"] == {"batch": 4, "height": HEIGHT}
    assert report["macs"] == {"paper": 40.0, "full": 48.0}
    assert report["plain_macs"] == {"paper": 60.0, "full": 72.0}
    assert all(step["milliseconds"] > 0 for step in report["steps"])


def plan_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "bundle" / "plan.json"
        plan = json.loads(path.read_text())
        change(plan)
        path.write_text(json.dumps(plan))

    return edit


def input_with(name: str, make: Callable[[Any], Array | None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "in.safetensors")
        tensors[name] = make(tensors.get(name))
        kept = {key: value for key, value in tensors.items() if value is not None}
        save_file(kept, folder / "in.safetensors")

    return edit


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 100)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no plan": (without("bundle/plan.json"), "plan.json cannot be read. Give the folder"),
    "short plan": (cut("bundle/plan.json"), "plan.json is no plan"),
    "schema": (plan_with(lambda p: p.update(schema=3)), "has schema 3, this runner reads 1 and 2"),
    "format": (plan_with(lambda p: p.update(format="tensorrt")), "built without format tensorrt"),
    "table": (plan_with(lambda p: p["table"].pop(0)), "reads delta_2_4_0 of step 0, which is not"),
    "later": (plan_with(lambda p: p["table"][1].update(reads=[3])), "Row 1 reads delta_2_4_0 of"),
    "none": (plan_with(lambda p: p["table"][1].update(reads=[])), "reads delta_2_4_0, which is"),
    "weights": (plan_with(lambda p: p["table"][1].update(weights=[[1, 2]])), "Row 1 has 2 weights"),
    "many": (plan_with(lambda p: p.update(taken=9)), "The plan weighs 9 deltas"),
    "formula": (plan_with(lambda p: p["values"]["h1"].update(shape=["batch//0"])), "by zero"),
    "no segment": (without("bundle/segments/delta.onnx"), "is missing. Copy the whole bundle"),
    "short weights": (cut("bundle/weights.safetensors"), "bytes, the plan says"),
    "no input file": (without("in.safetensors"), "No such file"),
    "short input": (cut("in.safetensors"), "is no whole safetensors file"),
    "no input": (input_with("input:y", lambda y: None), "lacks the tensor input:y"),
    "other input": (input_with("input:z", lambda z: np.zeros(2)), "does not take"),
    "steps": (input_with("steps:t", lambda t: t[:3]), "has shape [3, 2], the bundle's table has 6"),
    "shape": (input_with("sample", lambda x: x[..., :3].copy()), "x is float32 [2, 2, 6, 3]"),
    "batches": (input_with("input:y", lambda y: np.arange(3)), "y is int64 [3]"),
    "dtype": (input_with("input:y", lambda y: y.astype("i4")), "the bundle has int64 [2]"),
    "range": (plan_with(lambda p: p["dimensions"].update(batch=[3, 8])), "for 3 to 8"),
}


def row_with(step: int, **change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plan: plan["table"][step].update(change)


def fit_with(step: int, basis: Sequence[float], gains: Sequence[float]) -> Callable[..., None]:
    return row_with(step, fit={"basis": list(basis), "gains": list(gains)})


def half(plan: dict[str, Any]) -> None:
    """Deltas of bfloat16, as far as the plan says."""
    for name in ("delta_2_4_0", "delta_0_2_0"):
        plan["values"][name] = plan["values"][name] | {"dtype": "bfloat16"}


def one_first(plan: dict[str, Any]) -> None:
    """A refresh that gives one delta, before the ones that give both."""
    refresh = next(v for v in plan["variants"] if v["name"] == FULL)
    plan["variants"].append(refresh | {"name": "one", "deltas": ["delta_2_4_0"]})
    plan["table"][0]["variant"] = "one"


# What a table of weighed or fitted deltas can say that no run can do.
MISFITS: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "no basis": ("fit", fit_with(0, [1], [1]), "Row 0 makes 1 coefficients of 1, where delta_2"),
    "too many": ("fit", fit_with(1, [1], [1, 1, 1, 1]), "of 1, the plan weighs 3"),
    "fewer": ("fit", fit_with(3, [1, 1], [1]), "Row 3 makes 1 coefficients of 2, the plan"),
    "gains at first": ("fit", fit_with(0, [], [1, 0]), "the first coefficient as it is"),
    "gain at first": ("fit", fit_with(0, [], [0.5]), "the first coefficient as it is"),
    "delta at last": ("fit", one_first, "coefficients of 1, where delta_0_2_0 has 0"),
    "some rows": ("fit", row_with(1, fit=None), "Row 1 gives deltas without a fit, and others"),
    "cached row": ("fit", fit_with(2, [1], [1, 1]), "Row 2 has a fit and gives no delta"),
    "type": ("fit", half, "The bundle fits deltas of bfloat16. Export the bundle again"),
    "weights": ("weights", row_with(2, weights=[[1, -1, 0.5]]), "Row 2 weighs 3 deltas, where"),
    "coefficients": ("fit", row_with(2, weights=[[1, 1, 1]]), "Row 2 weighs 3 deltas, where there"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_table_that_no_run_can_follow_is_refused(
    runner: Path, tmp_path: Path, misfit: str
) -> None:
    form, change, message = MISFITS[misfit]
    write_bundle(tmp_path / "bundle", form)
    save_file(trajectory(2, None), tmp_path / "in.safetensors")
    plan_with(change)(tmp_path)
    done = run(runner, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_weights_are_those_of_a_branch_that_is_alone(runner: Path, tmp_path: Path) -> None:
    plan = write_bundle(tmp_path / "bundle", "weights")
    given = trajectory(2, 1.7)
    save_file(given, tmp_path / "in.safetensors")
    branches = {"-": [[0.6, 0.5, 0]], "cond": [[0.1, 0.2, 0]]}
    plan_with(row_with(2, branches=branches))(tmp_path)
    shared = reference(tmp_path / "bundle", plan, given, plain=False)
    plan["table"][2]["weights"] = branches["-"]
    expected = reference(tmp_path / "bundle", plan, given, plain=False)
    assert run(runner, tmp_path).returncode == 0
    sample = load_file(tmp_path / "out.safetensors")["sample"]
    assert sample.tobytes() == expected.astype("f4").tobytes() != shared.astype("f4").tobytes()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_and_ends_the_run(runner: Path, tmp_path: Path, fault: str) -> None:
    write_bundle(tmp_path / "bundle")
    save_file(trajectory(2, None), tmp_path / "in.safetensors")
    damage, message = FAULTS[fault]
    damage(tmp_path)
    done = run(runner, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("options", [["--thread", "2"], ["--threads", "0"], ["a", "b"]])
def test_wrong_arguments_are_refused(runner: Path, options: list[str]) -> None:
    done = subprocess.run([runner, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("runner: ")
