"""The command line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from models import make
from typer.testing import CliRunner

import deltapass
from deltapass.cli.app import app, parse_pairs


def call(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "120"})
    return result.exit_code, result.output


def toy() -> tuple[object, tuple[object, ...], dict[str, object]]:
    """A factory for `deltapass explain --model test_app:toy`."""
    model = make("adaln")
    return (model, *model.inputs(999.0, 0))


def wrong() -> int:
    """A factory that gives something else."""
    return 3


def test_version() -> None:
    assert call("--version") == (0, f"deltapass {deltapass.__version__}\n")


def test_explain_the_embedded_model() -> None:
    code, text = call("explain", "--steps", "10")
    assert code == 0
    assert "28 blocks" in text
    assert "expected" in text


def test_explain_a_model_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    code, text = call("explain", "--model", "test_app:toy", "--option", "cached_blocks=4")
    assert code == 0
    assert "6 blocks" in text


@pytest.mark.parametrize("words", [["--budget", "0.6"], ["--option", "budget=0.6"]])
def test_explain_a_budget(words: list[str]) -> None:
    code, text = call("explain", *words)
    assert code == 0
    found = re.search(r"budget +0\.6 of .* wanted, (0\.\d+) in 20 steps reached", text)
    assert found is not None
    assert 0.58 < float(found[1]) <= 0.6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "0.01"], "the least possible share"),
        (["--budget", "1.5"], "above 0.0 and up to 1.0"),
        (["--budget", "0.6", "--option", "interval=3"], "contradict each other"),
        (["--model", "nothing"], "module:factory"),
        (["--model", "no_such_module:make"], "No module named"),
        (["--model", "test_app:wrong"], "gave int"),
        (["--option", "intervall=3"], "Did you mean 'interval'"),
        (["--option", "cached_blocks=99"], "99 but the model has 28 blocks"),
    ],
)
def test_errors_are_one_message_without_a_traceback(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    code, text = call("explain", *words)
    assert code == 1
    assert message in " ".join(text.split())
    assert "Traceback" not in text


def test_demo_with_an_option_that_does_not_exist(tmp_path: Path) -> None:
    code, text = call("demo", "--option", "lowring=eager", "--output", str(tmp_path))
    assert code == 1
    assert "Did you mean 'lowering'" in " ".join(text.split())


def test_pairs_are_read_as_json_or_text() -> None:
    pairs = ["interval=3", "boundary=0.5", "strict=true", "schedule=reversed"]
    assert parse_pairs(pairs) == {
        "interval": 3, "boundary": 0.5, "strict": True, "schedule": "reversed",
    }  # fmt: skip


def test_pair_without_an_equals_sign_is_refused() -> None:
    code, text = call("explain", "--option", "interval")
    assert code == 2
    assert "name=value" in text


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
        (
            ["explain", "--option", "interval=2", "--option", "interval=3"],
            "interval is given twice",
        ),
        (["export", "--engine", "opset=18", "--engine", "opset=20"], "--engine opset="),
    ],
)
def test_an_option_given_in_two_places_is_refused(words: list[str], message: str) -> None:
    code, text = call(*words)
    assert code == 2
    assert message in " ".join(text.split())


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("lowering=eager", "use --lowering"),
        ("steps=10", "use --steps"),
        ("order=1", "shows both orders"),
    ],
)
def test_demo_refuses_an_option_it_would_overwrite(pair: str, message: str, tmp_path: Path) -> None:
    code, text = call("demo", "--option", pair, "--output", str(tmp_path))
    assert code == 2
    assert message in text


def test_model_is_looked_for_where_the_command_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here_only.py").write_text("def make():\n    return 3\n")
    monkeypatch.chdir(tmp_path)
    assert "gave int" in " ".join(call("explain", "--model", "here_only:make")[1].split())
    assert str(tmp_path) not in sys.path


def test_error_inside_a_factory_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty.py").write_text("def make():\n    return None.shape\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AttributeError, match="shape"):
        CliRunner().invoke(app, ["explain", "--model", "faulty:make"], catch_exceptions=False)


def test_brackets_of_a_message_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "deltapass.demo.embedded", raising=False)
    monkeypatch.delitem(sys.modules, "deltapass.demo.compare", raising=False)
    code, text = call("explain")
    assert code == 1
    assert "pip install 'deltapass[demo]'" in " ".join(text.split())
