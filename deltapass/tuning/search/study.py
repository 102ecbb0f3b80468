"""Studies of optuna: where trials are kept, what they are about, and how an old one goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from deltapass.errors import TuneError
from deltapass.libraries import needs

with needs("optuna", "tune"):
    import optuna
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState

PROBLEM: Final = "problem"  # attribute of a study: what its trials are about
NAME: Final = "deltapass"


@contextmanager
def quiet() -> Iterator[None]:
    """Around what optuna would log for people who never asked it for anything."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def storage_of(place: str | None) -> BaseStorage | str | None:
    """Where trials are kept: in memory, in a journal, or in a database by its URL.

    Raises:
        TuneError: If the place cannot be used.
    """
    if place is None or "://" in place:
        return place
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(place))
    except OSError as error:
        raise TuneError(f"trials cannot be kept in {place}: {error}", "Choose another file") from (
            error
        )


def open_study(place: str | None, problem: dict[str, Any], sampler: Any) -> Study:
    """The study of a problem: a new one, or that of an earlier run.

    Args:
        place: See `storage_of`.
        problem: What the trials are about, as JSON holds it.
        sampler: Of optuna.

    Raises:
        TuneError: If the storage holds trials about something else, or cannot be used.
    """
    try:
        with quiet():
            study = optuna.create_study(
                storage=storage_of(place),
                study_name=NAME,
                directions=["minimize", "minimize"],
                sampler=sampler,
                load_if_exists=True,
            )
    except Exception as error:
        if isinstance(error, TuneError):
            raise
        raise TuneError(
            f"trials cannot be kept in {place}: {error}", "Choose another file or database"
        ) from error
    check_problem(study, problem, place)
    left = [trial.number for trial in study.get_trials(states=(TrialState.RUNNING,))]
    put_back(study, left)
    return study


def check_problem(study: Study, problem: dict[str, Any], place: str | None) -> None:
    """Note what a new study is about; of an older one, that it is about the same.

    Raises:
        TuneError: If it is not; names what differs.
    """
    known = study.user_attrs.get(PROBLEM)
    if known is None:
        study.set_user_attr(PROBLEM, problem)
        return
    other = [name for name in problem if known.get(name) != problem[name]]
    if other:
        name = other[0]
        raise TuneError(
            f"the trials in {place} are of another search: {name} was {known.get(name)!r} and is "
            f"{problem[name]!r}",
            "Search as before, or keep the trials elsewhere",
        )


def put_back(study: Study, numbers: Sequence[int]) -> None:
    """Trials that were cut off fail, and what they tried is the first to be tried again."""
    trials: list[FrozenTrial] = study.get_trials(deepcopy=False)
    for number in numbers:
        study.tell(number, state=TrialState.FAIL)
        if trials[number].params:
            study.enqueue_trial(trials[number].params)
