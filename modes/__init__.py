"""What ``--mode`` may be: one file for each, from the configuration to what the user sees.

``*_settings.py`` build what a section of the configuration asks for.
"""

from collections.abc import Callable

from modes.average import average_run
from modes.dequantizer import train_dequantizer
from modes.doctor import examine_run
from modes.dry_run import dry_run
from modes.edit import edit_image
from modes.evaluate import evaluate_run
from modes.export_run import export_run
from modes.import_run import FORMATS, import_run, read_source
from modes.interpolate import interpolate_images
from modes.likelihood import score_run
from modes.own_files import import_files
from modes.report import conclude, report_run
from modes.run import SHARED, Run, check_evaluation, describe
from modes.sample import sample_run
from modes.train import train_run

MODES: dict[str, Callable[[Run], None]] = {
    "doctor": examine_run,
    "train": train_run,
    "sample": sample_run,
    "likelihood": score_run,
    "evaluate": evaluate_run,
    "average": average_run,
    "interpolate": interpolate_images,
    "edit": edit_image,
    "dequantizer": train_dequantizer,
    "import": import_run,
    "export": export_run,
    "report": report_run,
}

__all__ = [
    "FORMATS",
    "MODES",
    "SHARED",
    "Run",
    "check_evaluation",
    "conclude",
    "describe",
    "dry_run",
    "import_files",
    "read_source",
]
