"""The names of transformers' trainer that are used here, imported without bitsandbytes.

Importing the trainer imports peft, and that imports bitsandbytes where it is installed: two seconds
of each start. So ours imports peft first, which lets bitsandbytes wait for its first use.
"""

from __future__ import annotations

import clara.backbone.lora_library  # noqa: F401

# isort: split
from transformers import (
    EarlyStoppingCallback,
    IntervalStrategy,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
)
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

__all__ = [
    "EarlyStoppingCallback",
    "EvalLoopOutput",
    "ExportableState",
    "IntervalStrategy",
    "PrinterCallback",
    "ProgressCallback",
    "Trainer",
    "TrainerCallback",
    "TrainerControl",
    "TrainerState",
    "TrainingArguments",
    "get_scheduler",
]
