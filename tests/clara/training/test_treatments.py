"""Which settings may change when a run is resumed."""

import dataclasses

from clara.training.arguments import ClaraTrainingArguments
from clara.training.treatments import treatment

# How every setting of the trainer is treated; what is not listed here is fixed.
IGNORED = {
    *("output_dir", "logging_dir", "overwrite_output_dir", "local_rank", "resume_from_checkpoint"),
    *("do_train", "do_eval", "do_predict"),
    "teacher",  # compared by its digest
}
BATCH = {"per_device_train_batch_size", "gradient_accumulation_steps", "total_batch_size"}
ONCE = {"metric_for_best_model", "greater_is_better"}
FIXED = {
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "optim_target_modules", "weight_decay", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "fp16", "seed", "data_seed"),
    *("dataloader_drop_last", "train_sampling_strategy", "max_prompt_tokens", "on_unusable"),
    *("train_backbone", "alignment_weight", "alignment_reduction", "query_reasoner"),
    *("train_query_reasoner", "selection", "negatives", "negatives_every", "in_batch_negatives"),
    *("learning_rates", "curriculum", "questions_per_document", "candidate_rates"),
    "unanswerable",
    *("distillation_weight", "distillation_top"),
    *("fsdp", "fsdp_config", "deepspeed", "accelerator_config", "parallelism_config"),
    # Without an effect on what is trained here, and not worth a rule of their own.
    *("average_tokens_across_devices", "label_smoothing_factor", "use_liger_kernel"),
    *("liger_kernel_config", "neftune_noise_alpha", "auto_find_batch_size", "label_names"),
    *("include_num_input_tokens_seen", "remove_unused_columns", "length_column_name"),
    "dataloader_in_order",
}
FREE = {
    *("max_steps", "num_train_epochs", "patience", "logging_steps", "save_steps", "eval_steps"),
    *("save_total_limit", "report_to", "run_name", "dataloader_num_workers", "use_cpu"),
    *("eval_strategy", "per_device_eval_batch_size", "candidate_index", "ddp_timeout", "log_level"),
    *("evaluate_examples", "evaluate_answers", "evaluation_rates", "max_hours", "teacher_cache"),
    *("gradient_checkpointing", "torch_compile", "load_best_model_at_end", "hub_token", "tf32"),
}


def test_every_setting_is_treated_in_one_way():
    known = {f.name for f in dataclasses.fields(ClaraTrainingArguments) if f.init}
    found = {}
    for name in known:
        found.setdefault(treatment(name), set()).add(name)
    assert found["ignored"] <= IGNORED
    assert found["batch"] == BATCH
    assert found["once"] == ONCE
    assert found["free"] >= FREE & known
    assert found["fixed"] >= FIXED & known
    assert treatment("a_setting_of_a_later_version") == "fixed"
