"""Whether a schedule is used where it was made for; what differs is said once."""

from __future__ import annotations

from typing import final

from deltapass.errors import CalibrationWarning, warn
from deltapass.schedule.made_for import MadeFor
from deltapass.selector.model import ModelInfo
from deltapass.sessions.session import Session

ELSEWHERE = (
    "the schedule's weights are used elsewhere than they were made for: {}. They may be worth "
    "little there: calibrate a schedule for it with deltapass.calibrate."
)


@final
class Uses:
    """The uses of fitted schedules by one compiled model."""

    def __init__(self, model: ModelInfo) -> None:
        self._model = model
        self._said: set[str] = set()

    def check(self, made_for: MadeFor, session: Session | None) -> None:
        """Warn of what differs, in what is known of both."""
        model = self._model
        found = [made_for.other_model(model.shapes)]
        if session is not None and session.sampler is not None:
            found.append(made_for.other_sampler(session.sampler()))
        text = "; ".join(filter(None, found))
        if text and text not in self._said:
            self._said.add(text)
            warn(ELSEWHERE.format(text), CalibrationWarning)
