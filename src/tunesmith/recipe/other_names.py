"""What other tools call a setting: the name that a complaint about an unknown key proposes.

These names are not accepted, because a value may mean something else there. ``aliases.py`` has the names that are
accepted in their section; at another place, the complaint names that section.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tunesmith.recipe.aliases import ALIASES

# By the key here: names in TRL, axolotl, LLaMA-Factory, torchtune, mlx-lm and OpenAI's API, and common short ones.
# A name with a section is of that section alone.
_NAMES: Mapping[str, Collection[str]] = {
    "model.path": (
        "base", "base_model", "model.name", "model_id", "model_name", "model_name_or_path", "model_path",
        "pretrained_model", "pretrained_model_name_or_path",
    ),
    "model.revision": ("model_revision",),
    "model.dtype": ("model_dtype", "precision"),
    "data.train": (
        "data.path", "dataset", "dataset_name", "dataset_path", "datasets", "train_data", "train_dataset", "train_file",
        "train_files", "training_data", "training_file",
    ),
    "data.eval": (
        "eval_data", "eval_dataset", "eval_file", "eval_size", "eval_split", "test_size", "val", "val_data", "val_file",
        "val_set_size", "val_size", "val_split", "valid", "validation", "validation_data", "validation_file",
        "validation_split",
    ),
    "data.max_length": (
        "block_size", "context_length", "cutoff_len", "max_len", "max_seq_len", "max_seq_length",
        "max_sequence_length", "max_token_length", "model_max_length", "seq_len", "seq_length", "seqlen",
        "sequence_len", "sequence_length",
    ),
    "data.columns": ("column_mapping", "field_mapping", "fields"),
    "data.chat_template": ("chat_format", "prompt_template", "template"),
    "data.train_on": ("assistant_only_loss", "completion_only_loss", "train_on_inputs", "train_on_responses_only"),
    "data.clean.dedupe": ("deduplicate", "deduplication"),
    "method.name": ("adapter", "finetuning_type", "ft_type", "peft_method", "train_type", "tuner_type"),
    "method.r": ("lora_dim", "lora_r", "lora_rank", "rank"),
    "method.lora_alpha": ("alpha", "lora_scale", "lora_scaling"),
    "method.lora_dropout": ("dropout",),
    "method.target_modules": (
        "lora_layers", "lora_modules", "lora_target", "lora_target_linear", "lora_target_modules", "target", "targets",
    ),
    "method.modules_to_save": ("additional_target", "lora_modules_to_save"),
    "method.use_dora": ("dora", "peft_use_dora"),
    "method.use_rslora": ("peft_use_rslora", "rslora"),
    "method.loraplus_lr_ratio": ("lora_plus_lr_ratio", "loraplus"),
    "method.load_in_8bit": ("int8", "quantization_8bit"),
    "method.trainable_layers": ("freeze_trainable_layers", "unfrozen_layers"),
    "objective.name": ("rl", "stage", "trainer"),
    "objective.beta": ("dpo_beta", "pref_beta", "rl_beta"),
    "training.learning_rate": (
        "base_lr", "init_lr", "initial_learning_rate", "learningrate", "lr", "max_lr", "peak_lr",
    ),
    "training.num_train_epochs": ("epoch", "epochs", "max_epochs", "n_epochs", "num_epochs", "train_epochs"),
    "training.max_steps": (
        "iterations", "iters", "max_iters", "max_train_steps", "num_iterations", "num_steps", "num_train_steps",
        "steps", "total_steps", "train_steps",
    ),
    "training.batch_size": (
        "batch", "batchsize", "bs", "effective_batch_size", "global_batch_size", "total_batch_size",
        "train_batch_size",
    ),
    "training.per_device_train_batch_size": (
        "device_batch_size", "micro_batch_size", "per_device_batch_size", "per_gpu_batch_size",
        "per_gpu_train_batch_size",
    ),
    "training.gradient_accumulation_steps": (
        "accumulate_grad_batches", "accumulation_steps", "grad_acc", "grad_accum", "grad_accum_steps",
        "grad_accumulation_steps", "gradient_accumulation",
    ),
    "training.optim": ("optimizer", "optimizer_name", "optimizer_type"),
    "training.lr_scheduler_type": (
        "learning_rate_schedule", "lr_decay_style", "lr_schedule", "lr_scheduler", "schedule", "scheduler",
        "scheduler_type",
    ),
    "training.lr_scheduler_kwargs": ("lr_scheduler_args", "scheduler_args"),
    "training.warmup_steps": ("lr_warmup_steps", "num_warmup_steps", "warm_up", "warmup", "warmup_iters"),
    "training.weight_decay": ("l2", "wd"),
    "training.adam_beta1": ("beta1",),
    "training.adam_beta2": ("beta2",),
    "training.adam_epsilon": ("adam_eps", "eps", "epsilon"),
    "training.max_grad_norm": (
        "clip_grad", "clip_grad_norm", "grad_clip", "grad_clip_norm", "gradient_clip_val", "gradient_clipping",
        "max_norm",
    ),
    "training.gradient_checkpointing": (
        "activation_checkpointing", "enable_activation_checkpointing", "grad_checkpoint", "grad_checkpointing",
        "use_gradient_checkpointing",
    ),
    "training.layout": ("pack", "packing", "sample_packing"),
    "training.neftune_noise_alpha": ("neftune", "neftune_alpha", "noise_alpha"),
    "training.logging_steps": ("log_every", "log_every_n_steps", "log_interval", "log_steps", "steps_per_report"),
    "training.eval_steps": (
        "eval_every", "eval_interval", "evals_per_epoch", "steps_per_eval", "val_check_interval", "val_steps",
        "validation_steps",
    ),
    "training.save_steps": ("checkpoint_steps", "save_every", "save_interval", "saves_per_epoch"),
    "training.save_total_limit": ("checkpoint_total_limit", "max_checkpoints", "num_checkpoints"),
    "training.load_best_model_at_end": ("keep_best", "load_best", "save_best"),
    "training.early_stopping_patience": ("early_stopping", "patience"),
    "training.report_to": ("log_to", "log_with", "logger", "loggers"),
    "training.seed": ("random_seed", "rng_seed"),
    "training.threads": ("n_threads", "num_threads"),
    "evaluation.metrics": ("eval_metrics", "metric_name"),
    "evaluation.max_new_tokens": ("generation_max_length", "max_gen_length", "max_generation_tokens"),
    "evaluation.max_rows": ("eval_limit", "eval_rows", "max_eval_samples", "max_test_samples"),
    "output_dir": ("out", "out_dir", "output", "output_folder", "output_path", "run_dir", "save_dir", "save_path"),
    # Sections
    "training": ("hyperparameters", "sft_config", "training_args", "training_arguments"),
    "method": ("lora", "lora_config", "peft", "peft_config"),
}  # fmt: skip
OTHER_NAMES: Mapping[str, str] = {name: key for key, names in _NAMES.items() for name in names}


def plain(name: str) -> str:
    """A key as it is spelled here: ``--Learning-Rate`` is ``learning_rate``."""
    return name.strip().lstrip("-").replace("-", "_").lower()


def meant(name: str, section: str = "") -> str | None:
    """The key here that another tool calls by this name, such as ``training.learning_rate`` for ``lr``; else None.

    Args:
        name: as ``plain`` gives it.
        section: that the name was found in, if it was in one.
    """
    known = next((".".join(alias.name) for alias in ALIASES if alias.name[-1] == name), None)
    return OTHER_NAMES.get(f"{section}.{name}") or OTHER_NAMES.get(name) or known
