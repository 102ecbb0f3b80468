"""The command line: `demo`, `explain`, start-up, and what all commands have in common."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from commands import call
from models import make
from typer.testing import CliRunner

import deltapass
from deltapass.cli.app import app
from deltapass.cli.command_line import parse_pairs

COMMANDS = ("calibrate", "demo", "explain", "export", "run", "trajectory")


def toy() -> tuple[object, tuple[object, ...], dict[str, object]]:
    """A factory for `deltapass explain test_app:toy`."""
    model = make("adaln")
    return (model, *model.inputs(999.0, 0))


def wrong() -> int:
    """A factory that gives something else."""
    return 3


def wrong_parts() -> tuple[object, int, int]:
    """A factory whose tuple holds something else."""
    return (make("adaln"), 1, 2)


def needs_one(name: str) -> str:
    """No factory: it takes an argument."""
    return name


NUMBER = 3


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """This module can be named as the module of a factory."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


# ---- start-up -----------------------------------------------------------------------------------

HEAVY = ("torch", "numpy", "diffusers")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        *(([command, "--help"], 0) for command in COMMANDS),
        (["export", "--bad"], 2),
        (["nonsense"], 2),
        (["demo", "--count", "x"], 2),
        (["explain", "nothing"], 2),
        (["explain", "--option", "intervall=3"], 2),
        (["explain", "--schedule", "nowhere.json"], 2),
        (["export", "--format", "onyx"], 2),
        (["export", "-o", "/proc/bundle"], 2),
        (["run", "nowhere"], 2),
        (["trajectory", "-o", "."], 2),
    ],
)
def test_what_needs_no_work_needs_no_torch(words: list[str], code: int, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from deltapass.cli.app import app\n"
        f"try: app({words!r})\n"
        "except SystemExit as end: code = end.code or 0\n"
        f"print(code, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == [f"{code} []"], done.stdout + done.stderr


def test_the_package_has_its_names_before_torch_is_loaded(tmp_path: Path) -> None:
    script = (
        "import sys, deltapass\n"
        "assert 'torch' not in sys.modules\n"
        "assert {'session', 'explain', '__version__'} <= set(dir(deltapass))\n"
        "from deltapass import Session, attach\n"
        "assert deltapass.attach is attach and 'torch' in sys.modules\n"
        "assert not hasattr(deltapass, 'nonsense') and not hasattr(deltapass, '__nonsense__')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


def test_version() -> None:
    assert call("--version") == (0, f"deltapass {deltapass.__version__}")


# ---- one grammar --------------------------------------------------------------------------------


def options_of(command: str) -> set[str]:
    return set(re.findall(r"--[a-z]+", call(command, "--help")[1]))


def test_an_option_of_several_commands_has_one_name_everywhere() -> None:
    assert all({"--output", "--overwrite"} <= options_of(command) for command in COMMANDS)
    assert all({"--schedule"} <= options_of(command) for command in COMMANDS[:-1])
    planning = {"--steps", "--schedule", "--budget", "--option"}
    assert all(planning <= options_of(command) for command in ("demo", "explain", "export"))
    assert all({"--call", "--count"} <= options_of(c) for c in ("explain", "export", "run"))
    # A model is an argument; the demo's is one of those in the package.
    others = [command for command in COMMANDS if command != "demo"]
    assert not any("--model" in options_of(command) for command in others)
    for command in ("explain", "export"):
        assert "[MODEL]" in call(command, "--help")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", "--steps", "4", "--option", "steps=3"], "use --steps"),
        (["export", "--steps", "4", "--option", "steps=3"], "use --steps"),
        (["export", "--option", "verify=false"], "use --verify"),
        (["export", "--option", "dynamic_shapes=1"], "use --dim"),
        (["export", "--option", "path=here"], "use --output"),
        (["export", "--dim", "a.2=1:4", "--dim", "a.2=1:8"], "a.2 is given twice"),
        (["demo", "--schedule", "none", "--option", "schedule=none"], "one of --schedule"),
        (["explain", "--budget", "1", "--option", "budget=1"], "one of --budget"),
        (["export", "--schedule", "none", "--option", "schedule=none"], "one of --schedule"),
        (
            ["explain", "--option", "interval=2", "--option", "interval=3"],
            "interval is given twice",
        ),
        (["export", "--engine", "opset=18", "--engine", "opset=20"], "--engine opset="),
        (["demo", "--option", "lowering=eager"], "use --lowering"),
        (["demo", "--option", "steps=10"], "use --steps"),
        (["explain", "--call", "{}"], "embedded is no pipeline's folder"),
        (["explain", "test_app:toy", "--count", "2"], "the factory says it"),
        (["export", "test_app:toy", "--call", "{}"], "test_app:toy is no pipeline's folder"),
        (["run", "b", "--steps", "4", "--call", '{"num_inference_steps": 3}'], "by --steps too"),
        (["run", "b", "--count", "4", "--call", '{"class_labels": [3]}'], "by --count too"),
        (["run", "b", "--call", '{"generator": 3}'], "use --seed for it"),
        (["run", "b", "--call", '{"output_type": "pil"}'], "arrays of numbers"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(words: list[str], message: str) -> None:
    code, text = call(*words)
    assert (code, message in text) == (2, True), text


@pytest.mark.parametrize(
    "words",
    [
        ["explain", "--steps", "0"],
        ["explain", "--steps", "-3"],
        ["explain", "--steps", "2.5"],
        ["explain", "--option", "interval"],
        ["explain", "--option", "=3"],
        ["explain", "--option", "interval=0"],
        ["explain", "--option", "boundary=-0.5"],
        ["explain", "--option", "per_step=3"],
        ["explain", "--option", "strict=yes"],
        ["explain", "--option", "lowering=egaer"],
        ["explain", "--schedule", "revresed"],
        ["explain", "--budget", "0"],
        ["explain", "--budget", "nan"],
        ["explain", ""],
        ["explain", "a b:c"],
        ["explain", "module:"],
        ["explain", "no/such/folder"],
        ["explain", "embedded", "more"],
        ["export", "--batch", ""],
        ["export", "--batch", "0:4"],
        ["export", "--batch", "4"],
        ["export", "--dim", "x.1=4"],
        ["export", "--call", "[" * 100_000],
        ["run"],
        ["run", ".", "-o", "grid.txt"],
        ["run", ".", "--pipeline", "nowhere"],
        ["run", ".", "--seed", "-1"],
        ["trajectory", "--seed", str(2**70)],
        ["trajectory", "--guidance", "nan"],
        ["demo", "--guidance", "-1"],
        ["demo", "--rounds", "0"],
    ],
)
def test_words_that_cannot_be_followed_end_before_any_work(words: list[str]) -> None:
    code, text = call(*words)
    assert code == 2
    assert "Traceback" not in text


def test_pairs_are_read_as_json_or_text() -> None:
    pairs = ["interval=3", "boundary=0.5", "strict=true", "schedule=reversed", "a=b=c"]
    assert parse_pairs(pairs) == {
        "interval": 3, "boundary": 0.5, "strict": True, "schedule": "reversed", "a": "b=c",
    }  # fmt: skip


# ---- explain ------------------------------------------------------------------------------------


def test_explain_the_embedded_model(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"schedule": "reversed", "interval": 5}))
    code, text = call("explain", "--steps", "10", "--schedule", str(tmp_path / "s.json"))
    assert code == 0
    assert "28 blocks" in text
    assert "(10 steps; R: refresh; s21: blocks 0..20 skipped; d21: blocks 7..27 skipped)" in text
    assert "R s21x4 R d21x4" in text


@pytest.mark.usefixtures("here")
def test_explain_a_model_of_the_users_own_into_a_file(tmp_path: Path) -> None:
    place = tmp_path / "new" / "отчёт.txt"
    words = ["explain", "test_app:toy", "--option", "cached_blocks=4", "-o", str(place)]
    code, text = call(*words)
    assert code == 0
    assert "6 blocks" in text
    assert "6 blocks" in place.read_text(encoding="utf-8")
    assert list(place.parent.iterdir()) == [place]
    code, text = call(*words)
    assert (code, "exists. Choose another place" in text) == (2, True)
    assert call(*words, "--overwrite")[0] == 0


@pytest.mark.parametrize("words", [["--budget", "0.6"], ["--option", "budget=0.6"]])
def test_explain_a_budget(words: list[str]) -> None:
    code, text = call("explain", *words)
    assert code == 0
    found = re.search(r"budget +0\.6 of .* wanted, (0\.\d+) in 20 steps reached", text)
    assert found is not None
    assert 0.58 < float(found[1]) <= 0.6


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--budget", "0.01"], 1, "the least possible share"),
        (["--budget", "1.5"], 2, "above 0.0 and up to 1.0"),
        (["--budget", "0.6", "--option", "interval=3"], 2, "contradict each other"),
        (["nothing"], 2, "module:factory"),
        (["no_such_module:make"], 1, "No module named"),
        (["test_app:no_such_name"], 1, "no attribute 'no_such_name'"),
        (["test_app:wrong"], 1, "it gave int"),
        (["test_app:wrong_parts"], 1, ", int, int"),
        (["test_app:needs_one"], 1, "cannot be called without arguments"),
        (["test_app:NUMBER"], 1, "NUMBER is no function, but int"),
        (["--option", "intervall=3"], 2, "Did you mean 'interval'"),
        (["--option", "cached_blocks=99"], 1, "99 but the model has 28 blocks"),
    ],
)
def test_errors_are_one_line_without_a_traceback(words: list[str], code: int, message: str) -> None:
    result = CliRunner().invoke(app, ["explain", *words], env={"COLUMNS": "40"})
    assert (result.exit_code, message in result.stderr) == (code, True), result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


def test_model_is_looked_for_where_the_command_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here_only.py").write_text("def make():\n    return 3\n")
    monkeypatch.chdir(tmp_path)
    assert "gave int" in call("explain", "here_only:make")[1]
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def make():\n    return None.shape\n", AttributeError),
        ("x = None.shape\n", AttributeError),
        ("def make(:\n", SyntaxError),
    ],
)
def test_error_inside_a_factory_is_not_hidden(
    source: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"faulty_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        call("explain", f"{name}:make")


def test_brackets_of_a_message_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "deltapass.demo.embedded", raising=False)
    monkeypatch.delitem(sys.modules, "deltapass.demo.compare", raising=False)
    code, text = call("explain")
    assert code == 1
    assert "pip install 'deltapass[demo]'" in text


# ---- the terminal -------------------------------------------------------------------------------


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path: Path) -> None:
    script = "from deltapass.cli.app import app; app()"
    command = f"{sys.executable} -c '{script}' explain --steps 6 | head -n 1"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("input")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_an_interrupted_command_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deltapass.cli.sources.load_source", interrupted)
    for command in ("explain", "export"):
        assert call(command, "-o", str(tmp_path / "new" / "report"))[0] == 130
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_text_is_shown_all_the_same(tmp_path: Path) -> None:
    script = "from deltapass.cli.app import app; app()"
    words = [sys.executable, "-c", script, "run", os.fsencode(tmp_path) + b"/\xff\xfe"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr
