"""All names of `deltapass`, which loads this module when the first of them is asked for."""

# ruff: noqa: PLC0414 - `as` says that a name is handed on
from deltapass.bundles.loaded import LoadedModel as LoadedModel
from deltapass.bundles.loaded import load as load
from deltapass.bundles.manifest import BundlePlan as BundlePlan
from deltapass.errors import CalibrationWarning as CalibrationWarning
from deltapass.errors import DeltapassError as DeltapassError
from deltapass.errors import RefusalWarning as RefusalWarning
from deltapass.explanation import Report as Report
from deltapass.explanation import explain as explain
from deltapass.exporting.write import export as export
from deltapass.pipelines.attach import Attachment as Attachment
from deltapass.pipelines.attach import attach as attach
from deltapass.pipelines.attach import detach as detach
from deltapass.pipelines.attach import last_report as last_report
from deltapass.pipelines.enable import Enabled as Enabled
from deltapass.pipelines.enable import disable as disable
from deltapass.pipelines.enable import enable as enable
from deltapass.pipelines.enable import paused as paused
from deltapass.schedule.explicit import ExplicitSchedule as ExplicitSchedule
from deltapass.schedule.files import load_schedule as load_schedule
from deltapass.schedule.files import save_schedule as save_schedule
from deltapass.schedule.presets import delta_cache as delta_cache
from deltapass.schedule.presets import delta_dit as delta_dit
from deltapass.schedule.presets import faster_diffusion as faster_diffusion
from deltapass.schedule.rules import Schedule as Schedule
from deltapass.schedule.rules import Span as Span
from deltapass.sessions.report import Cause as Cause
from deltapass.sessions.report import SessionReport as SessionReport
from deltapass.sessions.session import Session as Session
from deltapass.sessions.session import session as session
from deltapass.sessions.timeline import save_timeline as save_timeline
from deltapass.tuning.fit.calibrate import calibrate as calibrate
from deltapass.tuning.fit.calibration import Calibration as Calibration
from deltapass.tuning.search.pareto import save_pareto as save_pareto
from deltapass.tuning.search.tune import tune as tune
from deltapass.tuning.search.tuned import Tuned as Tuned
