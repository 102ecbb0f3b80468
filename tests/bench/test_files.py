"""bench/files.py, environment.py, manifest.py: what is read, what is refused, what is hashed."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltapass.bench.environment import facts, read_environment
from deltapass.bench.files import ALL, digest, read_suite, read_suites, shipped, write_whole
from deltapass.bench.manifest import manifest_of, read_prompts
from deltapass.bench.methods.method import Context
from deltapass.bench.methods.named import check_distinct, method_of
from deltapass.bench.metrics.table import MEASURES
from deltapass.demo.embedded import ASSETS
from deltapass.errors import BenchError
from deltapass.schedule.rules import Span

SUITE = """
name = "mine"
title = "Mine"
question = "Why?"
[[method]]
name = "plain"
"""
BLOCKS = {"garments": 28, "nouns": 16}


def context(model: str, steps: int) -> Context:
    blocks = BLOCKS[model]

    def macs(span: Span | None) -> float:
        return blocks - (0 if span is None else len(span))

    return Context(model=model, steps=steps, folder=ASSETS / model, blocks=blocks, step_macs=macs)


@pytest.mark.parametrize("name", shipped())
def test_every_method_of_a_shipped_suite_can_be_made_for_its_models(name: str) -> None:
    suite = read_suite(name)
    assert suite.name == name
    assert {*suite.measures} <= {*MEASURES}
    for model in suite.models or BLOCKS:
        made = [method_of(spec, context(model, suite.steps)) for spec in suite.methods]
        check_distinct(made)
        assert made[0].kind == "plain"
        for method in made:
            if method.schedule is not None:
                method.schedule.table(method.steps, BLOCKS[model])


def test_all_stands_for_every_shipped_suite_and_none_is_there_twice() -> None:
    assert read_suites(["table5", ALL])[0].name == "table5"
    assert len(read_suites([ALL, "table5"])) == len(shipped())
    assert {f"table{n}" for n in range(1, 13)} <= {*shipped()}


def test_a_suite_of_one_s_own_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SUITE)
    suite = read_suite(str(path))
    assert (suite.name, suite.methods[0].name, suite.images) == ("mine", "plain", 200)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SUITE + "step = 3", "unknown field `step`.*Its keys are name"),
        ("imags = 3\n" + SUITE, "unknown field `imags`"),
        ("images = 'many'\n" + SUITE, r"Expected `int`.*\$.images"),
        ("images = 0\n" + SUITE, "images is 0"),
        ("name =", "is no TOML"),
        ("method = []\n" + SUITE.partition("[[")[0], "has no method"),
    ],
)
def test_a_file_that_says_nonsense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(BenchError, match=said):
        read_suite(str(path))


def test_an_unknown_suite_gets_the_near_match() -> None:
    with pytest.raises(BenchError, match=r"there is no suite 'tabel1'\. Did you mean 'table1"):
        read_suite("tabel1")


def test_a_digest_is_of_what_is_said_not_of_how(tmp_path: Path) -> None:
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text(SUITE)
    other.write_text("steps = 20 # the default\n" + SUITE)
    assert digest(read_suite(str(one))) == digest(read_suite(str(other)))
    other.write_text("steps = 21\n" + SUITE)
    assert digest(read_suite(str(one))) != digest(read_suite(str(other)))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_whole(path, "one")
    write_whole(path, "two")
    assert path.read_text() == "two" and [*path.parent.iterdir()] == [path]
    with pytest.raises(BenchError, match="cannot be written"):
        write_whole(path / "below", "three")


def test_the_command_line_comes_before_the_environment_file(tmp_path: Path) -> None:
    path = tmp_path / "here.toml"
    path.write_text('name = "here"\ndtype = "bfloat16"\nthreads = 1\n')
    found = read_environment(path, dtype="float16", threads=None)
    assert (found.name, found.dtype, found.threads) == ("here", "float16", 1)
    assert facts(found)["name"] == "here"
    with pytest.raises(BenchError, match="dtype is 'float8'"):
        read_environment(path, dtype="float8")
    with pytest.raises(BenchError, match="threads is 0"):
        read_environment(None, threads=0)


def test_prompts_are_lines_or_arguments(tmp_path: Path) -> None:
    words, calls = tmp_path / "words.txt", tmp_path / "calls.jsonl"
    words.write_text("a cat\n\na dog\n")
    calls.write_text('{"prompt": "a cat", "height": 8}\n')
    assert read_prompts(words) == ("a cat", "a dog")
    assert read_prompts(calls) == ({"prompt": "a cat", "height": 8},)
    words.write_text("\n")
    with pytest.raises(BenchError, match="the file is empty"):
        read_prompts(words)
    calls.write_text("{")
    with pytest.raises(BenchError, match="one JSON value a line"):
        read_prompts(calls)


def test_a_manifest_tells_prompts_and_seeds_apart() -> None:
    one = manifest_of(range(2), ("a", "b"))
    assert one == manifest_of(range(2), ("a", "b"))
    others = (manifest_of(range(2), ("a", "c")), manifest_of(range(1, 3), ("a", "b")))
    assert one.sha256 not in {other.sha256 for other in others}
