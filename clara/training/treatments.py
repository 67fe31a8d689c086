"""Which settings of the trainer may change when a run is resumed, and which must stay."""

from __future__ import annotations

from typing import Literal

Treatment = Literal["ignored", "batch", "free", "once", "fixed"]

# Where things are kept, what is compared elsewhere, and what transformers' own scripts use.
_IGNORED = frozenset(
    {
        "output_dir",
        "logging_dir",
        "overwrite_output_dir",
        "local_rank",
        "do_train",
        "do_eval",
        "do_predict",
        "resume_from_checkpoint",
        "teacher",  # `resuming` compares what it is, not where
    }
)
# These decide together how many examples a step takes.
BATCH = frozenset(
    ("per_device_train_batch_size", "gradient_accumulation_steps", "total_batch_size")
)
# What is evaluated, saved, logged and reported, and how the same numbers are computed.
_FREE = frozenset(
    {
        "max_steps",
        "num_train_epochs",
        "max_hours",
        "patience",
        "candidate_index",
        "teacher_cache",
        "evaluate_examples",
        "evaluate_answers",
        "evaluation_rates",
        "disable_tqdm",
        "project",
        "run_name",
        "per_device_eval_batch_size",
        "bf16_full_eval",
        "fp16_full_eval",
        "prediction_loss_only",
        "include_for_metrics",
        "batch_eval_metrics",
        "load_best_model_at_end",
        "enable_jit_checkpoint",
        "ignore_data_skip",
        "restore_callback_states_from_checkpoint",
        "use_cpu",
        "no_cuda",
        "use_mps_device",
        "use_cache",
        "tf32",
        "full_determinism",
        "skip_memory_metrics",
        "debug",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "torch_empty_cache_steps",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
    }
)
_FREE_PREFIXES = (
    *("logging_", "log_", "report_", "trackio_", "eval_", "save_"),
    *("hub_", "push_to_", "ddp_", "torch_compile"),
)
# The best score that a run remembers was found with them; a run without them remembers none.
_ONCE = frozenset(("metric_for_best_model", "greater_is_better"))


def treatment(name: str) -> Treatment:
    """How a setting of the trainer is treated when a run is resumed.

    "ignored" is not compared, "batch" may change as long as a step takes as many examples, "free"
    may change and is said, "once" may change if it was not set. All others are "fixed", those
    that a later transformers adds among them: what is not known to leave a run as it is would
    change it in silence.
    """
    if name in _IGNORED:
        return "ignored"
    if name in BATCH:
        return "batch"
    if name in _ONCE:
        return "once"
    if name in _FREE or name.startswith(_FREE_PREFIXES):
        return "free"
    return "fixed"
