"""The documents name only what exists, and their examples run.

A fenced block marked `python` must compile; one marked `python run` is run, all those of a file in
order and in one namespace, with the names of `surroundings`. In running text, everything in
backticks that looks like a path, option, make target, error or name of the package is looked up.
"""

from __future__ import annotations

import builtins
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import B, C, D, S, T, make, noise, randomise

from deltapass import errors
from deltapass.options import OPTION_NAMES, parse_options
from deltapass.sessions.report import Cause

ROOT = Path(__file__).parent.parent
FILES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(path for path in (ROOT / "README.md", ROOT / "benchmarks" / "README.md") if path.exists()),
]
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
SUFFIXES = r"\.(?:py|md|toml|yaml|json|txt|typed)"
PATH = re.compile(rf"(?:\.?[\w-]+/)*[\w.-]+(?:{SUFFIXES})|(?:\.?[\w-]+/)+(?:run)?")

documents = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(path: Path, kind: str) -> list[str]:
    """The code of all fenced blocks of one kind."""
    return [found["code"] for found in FENCE.finditer(path.read_text()) if found["kind"] == kind]


def ticked(path: Path) -> list[str]:
    """What stands in backticks in running text and tables."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", path.read_text()))


def anchors(path: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---- names ------------------------------------------------------------------------------------


@documents
def test_paths_exist(path: Path) -> None:
    shell = " ".join(blocks(path, "sh")).split()
    named = {name for name in (*ticked(path), *shell) if PATH.fullmatch(name)}
    # A name without a folder may be an example's own file; within running text ours have folders.
    ours = {name for name in named if "/" in name}
    missing = {name for name in ours if not (ROOT / name).exists()}
    assert not missing, f"{path.name} names what does not exist: {sorted(missing)}"


@documents
def test_relative_links_resolve(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", FENCE.sub("", path.read_text()))
    broken = []
    for target in targets:
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert not broken


@documents
def test_no_absolute_paths(path: Path) -> None:
    assert not re.findall(r"(?:^|[\s`(\"'])/(?:\w+/)+\w*", path.read_text())


def options_named(path: Path) -> Iterator[str]:
    """Keys of every `options={...}` and every --option."""
    text = path.read_text()
    for inside in re.findall(r"options\"?\s*[=:]\s*\{([^{}]*)\}", text):
        yield from re.findall(r"[\"'](\w+)[\"']\s*:", inside)
    yield from re.findall(r"--option (\w+)=", text)


@documents
def test_options_exist(path: Path) -> None:
    # The guide shows a misspelt one on purpose.
    unknown = {*options_named(path)} - {*OPTION_NAMES, "intervall"}
    assert not unknown


def test_guide_has_every_option_with_its_default() -> None:
    text = (ROOT / "docs" / "guide.md").read_text()
    section = text.split("## Options")[1].split("## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.MULTILINE))
    chosen = parse_options()
    defaults = {name: getattr(chosen, name, None) for name in OPTION_NAMES}
    defaults["schedule"] = "balanced"
    defaults["inputs"] = None
    assert parse_options({"inputs": None, "per_step": None}) == chosen
    assert parse_options({"schedule": "balanced"}) == chosen
    assert {name: eval(value) for name, value in rows.items()} == defaults


def test_sessions_has_every_cause_in_the_order_of_the_code() -> None:
    text = (ROOT / "docs" / "sessions.md").read_text()
    section = text.split("## Why a delta is not read")[1].split("## ")[0]
    rows = re.findall(r"^\| `([a-z ]+)` \|", section, re.MULTILINE)
    assert rows == [cause.value for cause in Cause]


@documents
def test_tests_that_are_linked_exist(path: Path) -> None:
    links = re.findall(r"\[`(test_\w+)`\]\(([^)]+)\)", path.read_text())
    missing = [
        name
        for name, target in links
        if not re.search(rf"^(async )?def {name}\b", (path.parent / target).read_text(), re.M)
    ]
    assert not missing


def test_flags_of_the_benchmarks_exist() -> None:
    named = re.findall(r"--([a-z]+)", (ROOT / "benchmarks" / "README.md").read_text())
    sources = " ".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    assert not [
        name for name in named if not re.search(rf"--{name}\b|\b{name}(=|\": )\{{", sources)
    ]


@documents
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shell = [line for code in blocks(path, "sh") for line in code.splitlines()]
    named = {f[1] for text in (*ticked(path), *shell) if (f := re.match(r"make (\w+)", text))}
    assert named <= targets


@documents
def test_error_classes_exist(path: Path) -> None:
    named = set(re.findall(r"\b[A-Z]\w*(?:Error|Warning)\b", " ".join(ticked(path))))
    unknown = {name for name in named if not hasattr(errors, name) and not hasattr(builtins, name)}
    assert not unknown


@documents
def test_names_of_the_package_exist(path: Path) -> None:
    for name in sorted(set(re.findall(r"\bdeltapass(?:\.\w+)+", " ".join(ticked(path))))):
        head, *rest = name.split(".")
        value: Any = importlib.import_module(head)
        for part in rest:
            if not hasattr(value, part):
                importlib.import_module(f"{value.__name__}.{part}")
            value = getattr(value, part)


def test_architecture_lists_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    house = re.split(r"```", text)[1]  # the tree it begins with
    folders = ("deltapass/*.py", "deltapass/*/*.py", "backends/*.py")
    files = {file for folder in folders for file in ROOT.glob(folder)}
    modules = {file.stem for file in files if not file.name.startswith("__")}
    rooms = {f"{file.parent.name}/" for file in files}
    shown = set(re.findall(r"[\w.]+/?", house.replace(".py", "")))
    assert not sorted((modules | rooms) - shown)


# ---- examples ---------------------------------------------------------------------------------


@documents
def test_python_blocks_compile(path: Path) -> None:
    for code in (*blocks(path, "python"), *blocks(path, "python run")):
        compile(code, str(path), "exec")


@documents
def test_block_kinds_are_known(path: Path) -> None:
    kinds = {found["kind"] for found in FENCE.finditer(path.read_text())}
    assert kinds <= {"python", "python run", "sh", "text", "json", "toml"}


RUNNABLE = [path for path in FILES if blocks(path, "python run")]


def small_pipe() -> Any:
    """A pipeline as of diffusers, with a denoiser of 8 narrow blocks and random weights."""
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("matplotlib")  # for pictures of its reports
    from deltapass.demo.embedded import ClassConditionalPipeline

    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=1, out_channels=1, num_layers=8,
        sample_size=8, patch_size=4, num_embeds_ada_norm=10,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    labels = {7: "sneaker", 8: "bag"}
    pipe = ClassConditionalPipeline(randomise(model), scheduler, id2label=labels)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def surroundings(path: Path) -> dict[str, Any]:
    """What the examples may use without saying where it comes from."""
    return {
        **({"pipe": small_pipe()} if path.stem in ("choose", "sessions") else {}),
        "model": make("two_stream"),
        "latents": noise(0, B, T, C),
        "text": noise(1, B, S, D),
        "no_text": noise(2, B, S, D),
        "timesteps": [torch.full((B,), 999.0 - 125.0 * step) for step in range(8)],
        "sampler_step": lambda output, timestep, latents: latents - 0.1 * output,
    }


# diffusers' schedulers make arrays of tensors in a way that newer numpy warns of.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_marked_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # `__name__` as in a module, for what looks up its globals.
    namespace = {"__name__": "example", **surroundings(path)}
    for code in blocks(path, "python run"):
        exec(compile(code, str(path), "exec"), namespace)
