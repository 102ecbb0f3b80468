"""options.py: the frozen list, each value's check, and what excludes what."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltapass.errors import (
    BoundaryOutsideError,
    ContradictoryOptionsError,
    OptionError,
    ScheduleError,
    ScheduleFileError,
    StepCountError,
    UnknownLoweringError,
    UnknownOptionError,
    UnsupportedModeError,
)
from deltapass.options import (
    LOWERING_NAMES,
    MODES,
    OPTION_NAMES,
    Options,
    StatedInputs,
    parse_options,
)
from deltapass.schedule.budget import Budget
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.files import save_schedule
from deltapass.schedule.presets import (
    PRESETS,
    balanced,
    delta_cache,
    named_schedule,
    never,
    reversed_phases,
)
from deltapass.schedule.rules import Schedule, Span
from deltapass.schedule.weights import Weights


def test_the_list_of_options_is_frozen() -> None:
    assert OPTION_NAMES == (
        "lowering",
        "interval",
        "cached_blocks",
        "boundary",
        "gate",
        "budget",
        "order",
        "predictor",
        "keeps",
        "steps",
        "schedule",
        "preset",
        "fuse",
        "inputs",
        "per_step",
        "strict",
        "mode",
    )


def test_nothing_given_is_the_balanced_preset_on_inductor() -> None:
    expected = Options(
        lowering="inductor",
        steps=None,
        schedule=balanced(),
        fuse="blocks",
        inputs=StatedInputs(),
        strict=False,
        mode=None,
    )
    assert parse_options() == parse_options({}) == parse_options(None, None) == expected


def test_every_option_is_taken() -> None:
    raw: dict[str, object] = {
        "lowering": "eager",
        "interval": 3,
        "cached_blocks": 5,
        "boundary": 4,
        "gate": None,  # it excludes an interval
        "budget": None,  # it would choose the interval and the blocks
        "order": None,  # it would say what the predictor says
        "predictor": "quadratic",
        "keeps": "feature",
        "steps": 10,
        "schedule": "reversed",
        "preset": None,  # it would be the whole schedule
        "fuse": "whole",
        "inputs": {"sample": ["video", "audio"], "timestep": "s"},
        "per_step": ["residual", "pose"],
        "strict": True,
        "mode": "max-autotune",
    }
    before = dict(raw)
    assert tuple(raw) == OPTION_NAMES
    assert parse_options(raw) == Options(
        lowering="eager",
        steps=10,
        schedule=reversed_phases(
            interval=3, cached_blocks=5, boundary=4, predictor="quadratic", keeps="feature"
        ),
        fuse="whole",
        inputs=StatedInputs(sample=("video", "audio"), timestep="s", per_step=("residual", "pose")),
        strict=True,
        mode="max-autotune",
    )
    assert raw == before


def test_none_stands_for_not_given() -> None:
    names = (
        "interval",
        "cached_blocks",
        "boundary",
        "gate",
        "budget",
        "order",
        "predictor",
        "schedule",
        "preset",
        "steps",
        "inputs",
        "per_step",
    )
    assert parse_options(dict.fromkeys(names)) == parse_options()
    given = {"schedule": never(), "interval": None}
    assert parse_options(given).schedule == never()


def test_an_unknown_option_gets_the_near_match() -> None:
    with pytest.raises(UnknownOptionError, match=r"'intervall'\. Did you mean 'interval'\? Opt"):
        parse_options({"intervall": 2})
    with pytest.raises(UnknownOptionError, match="unknown option 'backend'"):
        parse_options({"backend": "inductor"})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("order", 2, r"0 \(the last delta\)"),
        ("order", True, r"0 \(the last delta\)"),
        ("order", 1.0, r"0 \(the last delta\)"),
        ("steps", 0, "a whole number from 1 on"),
        ("steps", True, "a whole number from 1 on"),
        ("steps", "20", "a whole number from 1 on"),
        ("fuse", "block", "'blocks' or 'whole'; did you mean 'blocks'"),
        ("fuse", ["blocks"], "'blocks' or 'whole'"),
        ("per_step", 3, "a list of parts of input names"),
        ("per_step", [1], "a list of parts of input names"),
        ("per_step", [""], "a list of parts of input names"),
        ("inputs", "x", "a dictionary with any of the keys 'sample'"),
        ("inputs", {"smaple": "x"}, "did you mean 'sample'"),
        ("strict", 1, "True or False"),
        ("strict", None, "True or False"),
        ("budget", 0, "a share of the plain model's MACs, above 0.0 and up to 1.0"),
        ("budget", 1.5, "above 0.0 and up to 1.0"),
        ("budget", "0.6", "above 0.0 and up to 1.0"),
        ("schedule", 3, "one of delta-dit, delta-cache-deep"),
        ("schedule", (None,), "a schedule object, or the path"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, value: object, allowed: str) -> None:
    with pytest.raises(OptionError, match=f"option {name!r} is .*It must be .*{allowed}"):
        parse_options({name: value})


@pytest.mark.parametrize("given", ["pose", ["pose"], ("pose",)])
def test_names_of_inputs_may_be_a_list_or_one_name(given: object) -> None:
    parsed = parse_options({"per_step": given})
    assert parsed.inputs.per_step == ("pose",)
    assert hash(parsed) == hash(parse_options({"per_step": ["pose"]}))


@pytest.mark.parametrize(
    ("stated", "match"),
    [
        ({"sample": 3}, "option 'sample' is 3. It must be a list of input names"),
        ({"sample": [""]}, "a list of input names"),
        ({"timestep": ["t"]}, "option 'timestep' is .*the name of an input"),
        ({"sample": ["t"], "timestep": "t"}, "another input than the sample"),
    ],
)
def test_a_bad_statement_is_named(stated: object, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        parse_options({"inputs": stated})


def test_per_step_is_short_for_that_key_of_inputs() -> None:
    stated = {"per_step": ["pose"]}
    assert parse_options({"inputs": stated}) == parse_options(stated)
    with pytest.raises(ContradictoryOptionsError, match="'inputs' and 'per_step'"):
        parse_options({"inputs": stated, "per_step": "control"})


@pytest.mark.parametrize("given", ["", [], ()])
def test_no_names_of_inputs_are_none(given: object) -> None:
    assert parse_options({"per_step": given}).inputs.per_step == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [("interval", True), ("interval", 0), ("cached_blocks", 1.5), ("boundary", 1.5)],
)
def test_fields_of_the_schedule_are_checked_there(name: str, value: object) -> None:
    with pytest.raises(ScheduleError, match=f"{name} is {value!r}"):
        parse_options({name: value})


def test_an_unknown_lowering_gets_the_near_match() -> None:
    assert LOWERING_NAMES == ("eager", "inductor", "onnx", "tensorrt")
    with pytest.raises(UnknownLoweringError, match=r"'inducter'\. Did you mean 'inductor'"):
        parse_options({"lowering": "inducter"})
    with pytest.raises(UnknownLoweringError, match="unknown lowering 'None'"):
        parse_options({"lowering": None})


def test_a_schedule_may_be_a_name_an_object_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    schedule = delta_cache("middle", warm_up=2)
    save_schedule(schedule, path)
    for value in (schedule, path, str(path)):
        assert parse_options({"schedule": value}).schedule == schedule
    assert parse_options({"schedule": "delta-cache-deep"}).schedule == delta_cache("deep")


def test_a_bad_schedule_name_or_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=r"unknown schedule 'reverse'\. Did you mean"):
        parse_options({"schedule": "reverse"})
    with pytest.raises(ScheduleFileError, match=r"b\.toml: cannot be read"):
        parse_options({"schedule": str(tmp_path / "b.toml")})
    with pytest.raises(ScheduleFileError, match="its name ends in"):
        parse_options({"schedule": tmp_path})


@pytest.mark.parametrize("field", ["interval", "cached_blocks", "boundary"])
@pytest.mark.parametrize(
    ("schedule", "why"),
    [
        (Schedule(), "the schedule object already sets it"),
        (ExplicitSchedule((None,)), "the schedule object already sets it"),
        ("x.json", r"the file x\.json already sets it"),
        (Path("x.toml"), r"the file x\.toml already sets it"),
        ("none", "schedule 'none' never caches"),
    ],
)
def test_a_whole_schedule_excludes_its_fields(schedule: Any, why: str, field: str) -> None:
    match = f"options 'schedule' and '{field}' contradict each other: {why}. Give one of the two"
    with pytest.raises(ContradictoryOptionsError, match=match):
        parse_options({"schedule": schedule, field: 1})


def test_a_budget_is_carried_until_the_model_is_known() -> None:
    parsed = parse_options({"budget": 0.6, "boundary": 4, "steps": 10})
    assert parsed.schedule == Budget(share=0.6, boundary=4)
    assert hash(parsed) == hash(parse_options({"budget": 0.6, "boundary": 4, "steps": 10}))
    with pytest.raises(BoundaryOutsideError, match="boundary 21 lies outside a trajectory of 20"):
        parse_options({"budget": 0.6, "steps": 20, "boundary": 21})


@pytest.mark.parametrize(
    ("name", "value"),
    [("interval", 2), ("cached_blocks", 0), ("schedule", "delta-dit"), ("schedule", Schedule())],
)
def test_a_budget_excludes_what_it_chooses(name: str, value: object) -> None:
    match = f"options 'budget' and '{name}' contradict each other: the budget chooses .*Give one of"
    with pytest.raises(ContradictoryOptionsError, match=match):
        parse_options({"budget": 0.6, name: value})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_schedule_of_its_name(name: str) -> None:
    assert parse_options({"preset": name}).schedule == named_schedule(name)
    assert parse_options({"preset": name}) == parse_options({"schedule": name})
    chosen = parse_options({"preset": name, "predictor": "quadratic"}).schedule
    assert chosen == dataclasses.replace(named_schedule(name), predictor="quadratic")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schedule", "balanced"),
        ("schedule", Schedule()),
        ("budget", 0.5),
        ("interval", 2),
        ("cached_blocks", 0),
        ("boundary", 0.5),
    ],
)
def test_a_preset_excludes_what_it_sets(name: str, value: object) -> None:
    match = f"options 'preset' and '{name}' contradict each other: a preset is a whole schedule"
    with pytest.raises(ContradictoryOptionsError, match=match):
        parse_options({"preset": "balanced", name: value})


@pytest.mark.parametrize(
    ("value", "text"),
    [("balance", "one of .*did you mean 'balanced'"), ("delta-dit", "one of"), (["fast"], "one")],
)
def test_an_unknown_preset_gets_the_near_match(value: object, text: str) -> None:
    with pytest.raises(OptionError, match=f"'preset' is {re.escape(repr(value))}.*{text}"):
        parse_options({"preset": value})


def test_a_preset_by_name_takes_no_fields() -> None:
    with pytest.raises(ScheduleError, match="schedule 'fast' does not take all of: interval"):
        parse_options({"schedule": "fast", "interval": 3})


def test_steps_are_checked_against_the_schedule_early() -> None:
    assert parse_options({"steps": 20, "boundary": 20}).steps == 20
    with pytest.raises(BoundaryOutsideError, match="boundary 21 lies outside a trajectory of 20"):
        parse_options({"steps": 20, "boundary": 21})
    table = ExplicitSchedule((None, Span(0, 1)))
    assert parse_options({"schedule": table, "steps": 2}).schedule == table
    with pytest.raises(StepCountError, match="2 rows but the trajectory has 3 steps"):
        parse_options({"schedule": table, "steps": 3})


@pytest.mark.parametrize("mode", MODES)
def test_supported_modes_are_kept(mode: str) -> None:
    assert parse_options(None, mode) == Options(schedule=balanced(), mode=mode)
    assert parse_options({"mode": mode}) == parse_options(None, mode)


@pytest.mark.parametrize("mode", ["lite", ""])
def test_other_modes_are_refused(mode: str) -> None:
    match = f"mode '{mode}' of torch.compile is not supported.*'default', 'reduce-overhead'"
    for given in ((None, mode), ({"mode": mode}, None)):
        with pytest.raises(UnsupportedModeError, match=match):
            parse_options(*given)


# ---- predictors --------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "predictor"), [(0, "reuse"), (1, "linear")])
def test_an_order_is_a_predictor_by_its_old_number(order: int, predictor: str) -> None:
    given = {"schedule": "reversed"}
    assert parse_options(given | {"order": order}) == parse_options(
        given | {"predictor": predictor}
    )
    assert parse_options({"order": order}).schedule == Schedule(predictor=predictor)


def test_only_what_says_nothing_of_the_paper_is_the_default() -> None:
    assert parse_options({"steps": 20, "predictor": "quadratic"}).schedule == replace(
        balanced(), predictor="quadratic"
    )
    for field in ("interval", "cached_blocks", "boundary"):
        assert parse_options({field: 3}).schedule == Schedule(**{field: 3})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("reversed", reversed_phases(predictor="quadratic")),
        (Schedule(interval=3), Schedule(interval=3, predictor="quadratic")),
        (Schedule(predictor="linear"), Schedule(predictor="quadratic")),
        (
            ExplicitSchedule((None, Span(0, 1))),
            ExplicitSchedule((None, Span(0, 1)), predictor="quadratic"),
        ),
    ],
)
def test_a_predictor_replaces_that_of_any_schedule(schedule: object, expected: object) -> None:
    assert parse_options({"schedule": schedule, "predictor": "quadratic"}).schedule == expected


def test_a_budget_takes_a_predictor() -> None:
    parsed = parse_options({"budget": 0.6, "predictor": "linear"})
    assert parsed.schedule == Budget(share=0.6, predictor="linear")


def test_two_words_on_how_to_predict_are_refused() -> None:
    with pytest.raises(ContradictoryOptionsError, match="both say how a delta is predicted"):
        parse_options({"order": 1, "predictor": "linear"})
    fitted = ExplicitSchedule((None, Span(0, 1)), weights=(None, Weights(((0.9,),))))
    with pytest.raises(ContradictoryOptionsError, match="rows have weights of their own"):
        parse_options({"schedule": fitted, "predictor": "linear"})
    assert parse_options({"schedule": fitted}).schedule is fitted


def test_an_unknown_predictor_is_named() -> None:
    with pytest.raises(ScheduleError, match="unknown predictor 'liner'"):
        parse_options({"predictor": "liner"})
