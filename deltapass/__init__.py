"""deltapass: faster diffusion transformers by Delta-Cache, in the compiler.

pipe.transformer = torch.compile(pipe.transformer, backend="deltadit")
"""

from deltapass.attach import Attachment as Attachment
from deltapass.attach import attach as attach
from deltapass.attach import detach as detach
from deltapass.attach import last_report as last_report
from deltapass.bundle import BundlePlan as BundlePlan
from deltapass.errors import DeltapassError as DeltapassError
from deltapass.errors import RefusalWarning as RefusalWarning
from deltapass.explain import Report as Report
from deltapass.explain import explain as explain
from deltapass.export import export as export
from deltapass.loaded import LoadedModel as LoadedModel
from deltapass.loaded import load as load
from deltapass.presets import delta_cache as delta_cache
from deltapass.presets import delta_dit as delta_dit
from deltapass.report import Cause as Cause
from deltapass.report import SessionReport as SessionReport
from deltapass.schedule import ExplicitSchedule as ExplicitSchedule
from deltapass.schedule import Schedule as Schedule
from deltapass.schedule import Span as Span
from deltapass.schedule_files import load_schedule as load_schedule
from deltapass.schedule_files import save_schedule as save_schedule
from deltapass.session import Session as Session
from deltapass.session import session as session
from deltapass.timeline import save_timeline as save_timeline

__version__ = "0.1.0"
