"""Every error says a fact and a remedy, pickles, and stands in docs/errors.md with this text."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import compiled, follow
from models import make
from raising import raises_in_compile
from torch._dynamo.exc import BackendCompilerFailed

from deltapass import errors

DOCS = (Path(__file__).parent.parent / "docs" / "errors.md").read_text()

# One example of each class; docs/errors.md shows its text.
EXAMPLES: dict[type[errors.DeltapassError], tuple[object, ...]] = {
    errors.DeltapassError: ("a fact", "A remedy"),
    errors.InternalError: ("variant 'cached 7-28' reads value 'x7' before it is made",),
    errors.OptionError: ("interval", 0, "a whole number of at least 1"),
    errors.UnknownOptionError: ("boundry", ("boundary", "cached_blocks", "interval")),
    errors.ContradictoryOptionsError: ("schedule", "interval", "the schedule sets the interval"),
    errors.UnsupportedModeError: ("lite", ("default", "max-autotune")),
    errors.ScheduleError: ("step 0 is cached", "Make step 0 a refresh"),
    errors.TooManyCachedBlocksError: (30, 28),
    errors.SpanOutsideError: (7, 28, 8),
    errors.BoundaryOutsideError: (25, 20),
    errors.ScheduleFileError: ("plan.toml", "line 3 has no '='"),
    errors.StepCountError: (20, 28),
    errors.UnknownLoweringError: ("inducter", ("eager", "inductor")),
    errors.UnsupportedGraphError: ("a fact about the graph", "A remedy"),
    errors.NoBlocksError: (12, "3 linear layers of different widths"),
    errors.GraphBreakError: ("call of print()", "denoiser.py:39"),
    errors.HooksInsideError: ("Denoiser", 28),
    errors.BlockAloneError: ("transformer_blocks.0", "Block", "Denoiser", 28),
    errors.MixedDevicesError: (("cpu", "cuda:0"),),
    errors.StreamError: (
        "blocks 0..4",
        "value_5",
        "continues no value that enters it",
        "Blocks 3..5 can be cached: give options={'schedule': 'delta-cache-deep', "
        "'cached_blocks': 3}",
    ),
    errors.NoCrossAttentionError: (
        "blocks 0..23 (cross-attention)",
        "of 24 attention products none takes keys or values from pooled_projections, "
        "encoder_hidden_states alone: they come from the sample, or from both as in joint "
        "attention",
    ),
    errors.SmallSpanError: (
        "blocks 0..3",
        0.0031,
        "Blocks 0..27 can be cached: give options={'schedule': 'delta-cache-deep', "
        "'cached_blocks': 28}",
    ),
    errors.UnsupportedOperatorError: ("aten.nonzero.default",),
    errors.TensorFormError: ("encoder_hidden_states", "a nested tensor"),
    errors.WrappedWeightError: ("blocks_0_mlp_weight", "Int8Tensor", "onnx"),
    errors.TraceError: ("Could not guard on data-dependent expression Eq(u0, 0)",),
    errors.AnalysisError: ("KeyError at streams.py:120: 'add_3'",),
    errors.MutationError: ("aten.resize_", "it changes the tensor's shape"),
    errors.GradientsEnabledError: (),
    errors.StepUnknownError: ("the graph has no timestep input",),
    errors.NoTimestepError: (("x", "w", "s"),),
    errors.NumberTimestepError: ("timestep",),
    errors.ChangingInputError: (("pose", "guidance"), ("guidance",)),
    errors.TooManyBranchesError: (64,),
    errors.LoweringError: ("inductor", "block_0", "C++ compiler not found"),
    errors.MissingLibraryError: ("diffusers", "demo"),
    errors.MissingDeviceError: (
        "this ONNX Runtime has no CUDAExecutionProvider; it has CPUExecutionProvider",
        "Install the onnxruntime package that has it, such as onnxruntime-gpu",
    ),
    errors.EngineBuildError: (
        "blocks_7_21.onnx",
        "tensorrt",
        ("node 'n' (Erf): Op type Erf is not supported",),
    ),
    errors.EngineRunError: ("tensorrt-rtx", ("the engine is for another architecture",)),
    errors.ExportError: ("bundle exists", "Choose another place, or say overwrite"),
    errors.DynamicShapeError: (
        "dimension 0 of labels cannot vary: the model needs 2",
        "Leave it out of the dynamic dimensions",
    ),
    errors.VerificationError: ("segment 'blocks_7_21'", 0.0123, 2e-5),
    errors.BundleError: (
        "bundle/prologue.onnx has 100 bytes, plan.json says 120",
        "It was truncated or replaced: copy the whole folder, or export again",
    ),
    errors.SignatureError: (
        "timestep is missing",
        "The exported model takes a tensor",
    ),
    errors.OutputError: ("grid.png exists", "Choose another place"),
    errors.ModelSourceError: ("pipe", "the folder holds no model_index.json"),
    errors.PipelineCallError: (
        "PixArtAlphaPipeline",
        ("height", "width"),
        "it says ValueError: Provide either `prompt` or `prompt_embeds`",
    ),
    errors.CalibrationError: (
        "none of 20 calls was cached; the schedule caches none",
        "Give a schedule with cached rows, and mend what kept them from being cached",
    ),
    errors.TuneError: (
        "there is no Ray at '10.0.0.1:6379': nobody answers",
        "Start one with `ray start --head` and give its address, or say 'local'",
    ),
    errors.BenchError: (
        "suite mine.toml: method 'delta-dti' is unknown",
        "Did you mean 'delta-dit'? Methods are: plain, delta-dit",
    ),
    errors.LoopError: ("the loop gave a list", "It must give the final samples as one tensor"),
    errors.StateError: ("the session is closed", "Open a new one"),
    errors.AttachError: ("this StableDiffusion3Pipeline is attached already", "Detach it first"),
    errors.StepOutsideError: (20, 20),
    errors.NoStepError: (),
}
WARNINGS = (errors.CalibrationWarning, errors.LaunchedWarning, errors.RefusalWarning)


def example(error_class: type[errors.DeltapassError]) -> errors.DeltapassError:
    return error_class(*EXAMPLES[error_class])  # type: ignore[arg-type]


def public_classes() -> set[type]:
    members = inspect.getmembers(errors, inspect.isclass)
    return {cls for _, cls in members if cls.__module__ == errors.__name__}


def test_every_class_has_an_example() -> None:
    assert public_classes() == {*EXAMPLES, *WARNINGS}


@pytest.mark.parametrize("error_class", EXAMPLES)
def test_error_shows_fact_then_remedy(error_class: type[errors.DeltapassError]) -> None:
    error = example(error_class)
    assert str(error) == f"{error.fact}. {error.remedy}."
    assert error.fact and error.remedy
    assert not error.remedy.endswith(".")
    assert error.remedy[0].isupper() or error.remedy.startswith(("torch.", "options=", "verify="))


@pytest.mark.parametrize("error_class", EXAMPLES)
def test_error_pickles(error_class: type[errors.DeltapassError]) -> None:
    error = example(error_class)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is error_class
    assert (copy.fact, copy.remedy, str(copy)) == (error.fact, error.remedy, str(error))


@pytest.mark.parametrize("error_class", EXAMPLES)
def test_docs_show_the_error_and_its_text(error_class: type[errors.DeltapassError]) -> None:
    assert f"`{error_class.__name__}`" in DOCS
    assert str(example(error_class)) in DOCS


@pytest.mark.parametrize("warning", WARNINGS)
def test_docs_name_the_warning(warning: type[Warning]) -> None:
    assert f"`{warning.__name__}`" in DOCS


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (errors.UnknownOptionError("intervall", ("interval", "strict")), "Did you mean 'interval'"),
        (errors.UnknownLoweringError("egaer", ("eager", "inductor")), "Did you mean 'eager'"),
    ],
)
def test_near_match_is_named(error: errors.DeltapassError, hint: str) -> None:
    assert hint in str(error)


def test_no_near_match_is_invented() -> None:
    assert "Did you mean" not in str(errors.UnknownOptionError("zzz", ("interval", "strict")))


@pytest.mark.parametrize(
    ("error_class", "builtin"),
    [
        (errors.OptionError, ValueError),
        (errors.ScheduleError, ValueError),
        (errors.UnknownLoweringError, ValueError),
        (errors.MissingLibraryError, ImportError),
        (errors.MissingDeviceError, RuntimeError),
        (errors.EngineRunError, RuntimeError),
        (errors.ExportError, ValueError),
        (errors.BundleError, ValueError),
        (errors.SignatureError, TypeError),
        (errors.StateError, RuntimeError),
        (errors.RefusalWarning, UserWarning),
    ],
)
def test_error_is_also_a_builtin(error_class: type, builtin: type) -> None:
    assert issubclass(error_class, builtin)


def test_helper_takes_an_error_out_of_torchs_wrapper() -> None:
    def backend(module: torch.fx.GraphModule, arguments: list[torch.Tensor]) -> None:
        raise example(errors.NoBlocksError)

    compiled = torch.compile(torch.nn.Linear(2, 2), backend=backend)
    with raises_in_compile(errors.NoBlocksError, match="12 operations") as caught:
        compiled(torch.ones(1, 2))
    assert type(caught.value) is errors.NoBlocksError


def test_helper_takes_an_error_as_it_is_and_leaves_others_alone() -> None:
    with raises_in_compile(errors.StateError) as caught:
        raise errors.NoStepError
    assert type(caught.value) is errors.NoStepError

    def backend(module: torch.fx.GraphModule, arguments: list[torch.Tensor]) -> None:
        raise example(errors.NoBlocksError)

    compiled = torch.compile(torch.nn.Linear(2, 2), backend=backend)
    with pytest.raises(BackendCompilerFailed), raises_in_compile(errors.LoweringError):
        compiled(torch.ones(1, 2))


# ---- where warnings point ------------------------------------------------------------------------


def at_compile_time() -> Any:
    model = torch.compile(torch.nn.Linear(2, 2), backend="deltadit", options={"lowering": "eager"})
    return model, (torch.ones(1, 2),)


def at_run_time() -> Any:
    """The same sample again and again: said in the middle of a run, below compiled code."""
    toy = make("adaln")
    model = compiled(toy)
    arguments, _ = toy.inputs(999.0, 0)
    follow(model, [(arguments, {})] * 8)
    return model, arguments


@pytest.mark.parametrize("prepare", [at_compile_time, at_run_time])
@torch.no_grad()
def test_warnings_point_at_the_line_that_called(prepare: Any) -> None:
    model, arguments = prepare()
    line = inspect.stack()[0].lineno + 2
    with pytest.warns(errors.RefusalWarning) as caught:
        model(*arguments)
    assert [(one.filename, one.lineno) for one in caught] == [(__file__, line)]


def test_every_warning_is_given_by_the_one_function_that_finds_the_line() -> None:
    folder = Path(errors.__file__).parent
    using = [p.name for p in sorted(folder.rglob("*.py")) if "warnings.warn" in p.read_text()]
    assert using == ["errors.py"]
