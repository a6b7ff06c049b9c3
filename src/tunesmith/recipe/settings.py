"""The recipe: the settings of a run with their names, defaults, bounds and help, and the checks across settings.

Names are those of transformers' TrainingArguments, PEFT's LoraConfig and BitsAndBytesConfig. ``recipe/file.py`` reads a
recipe from YAML; this module knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from tunesmith.recipe.data import DataSettings
from tunesmith.recipe.endpoint import JudgeSettings
from tunesmith.recipe.methods import LoraSettings, MethodSettings
from tunesmith.recipe.objectives import ObjectiveSettings, SftSettings
from tunesmith.recipe.optimizers import WITHOUT_BETAS, Optimizer
from tunesmith.recipe.schedules import Schedule, check_arguments
from tunesmith.recipe.section import Names, Settings, UserPath, short_for

TOKEN_METRICS = ("loss", "perplexity", "bits_per_byte", "token_accuracy")  # from logits; every run can have them
SELECTING = (
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "early_stopping_patience",
    "early_stopping_threshold",
)  # fmt: skip
PREFERENCE_METRICS = ("preference_accuracy", "reward_accuracy", "reward_margin")  # of pairs of answers
# No mean over the scores of the rows:
CORPUS_METRICS = ("bleu", "chrf", "macro_f1", "likelihood_macro_f1", "json_field_f1")
CALIBRATION_METRICS = ("brier_score", "calibration_error")  # of label likelihoods; lower is better
LIKELIHOOD_METRICS = ("likelihood_accuracy", "likelihood_macro_f1", *CALIBRATION_METRICS)  # nothing is generated
LABEL_METRICS = ("accuracy", "macro_f1", *LIKELIHOOD_METRICS)  # of answers that are labels
PAIR_METRICS = ("judge",)  # of the answers of both models together
NOT_OF_ONE_ANSWER = (*TOKEN_METRICS, *PREFERENCE_METRICS, *LIKELIHOOD_METRICS, *PAIR_METRICS)
BaselineName = Literal["majority", "nearest", "linear", "few_shot"]  # answers without training a model
METRICS_OF_LOGITS: dict[str, tuple[str, ...]] = {  # by objective
    "sft": TOKEN_METRICS,
    "dpo": ("loss", *PREFERENCE_METRICS),
    "orpo": ("loss", *PREFERENCE_METRICS),
    "kto": ("loss",),
}
NEEDED_KEYS = {
    "json_schema": "json_schema",
    "regex_match": "answer_pattern",
    "judge": "judge",
}  # keys that a metric needs
ReporterName = Literal["tensorboard", "trackio", "mlflow", "wandb"]
LARGEST = 3.4e38  # nearly that of float32
NormalForm = Literal["case", "punctuation", "space"]
LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte")
HIGHER_IS_BETTER = ("token_accuracy", *PREFERENCE_METRICS)
# What `learning_rate: auto` means: the rates for 1B to 30B parameters. `init` knows the size, see planning/advice.py.
# The rate of freeze is between full and an adapter: it changes whole weights as full does, but fewer of them.
LEARNING_RATES = {"full": 2e-5, "freeze": 1e-4, "lora": 2e-4, "qlora": 2e-4}
# The same for dpo, orpo and kto: TRL's default, and ten times that for an adapter, as TRL's guide advises.
PREFERENCE_RATES = {"full": 1e-6, "freeze": 4e-6, "lora": 1e-5, "qlora": 1e-5}


class ModelSettings(Settings):
    """The model, and how its weights are loaded."""

    path: UserPath = Field(min_length=1, description="hub id, folder, .gguf file, or the name of the bundled model")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(default="auto", description="dtype of the weights")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the model")
    add_tokens: Names = Field(default_factory=list, description="tokens to add to the vocabulary; they are never split")
    add_special_tokens: Names = Field(
        default_factory=list, description="special tokens to add; they are left out of decoded answers"
    )

    @model_validator(mode="after")
    def _tokens_are_texts(self) -> ModelSettings:
        for text in self.named_tokens:
            if not text.strip():
                raise ValueError(f"a token needs a visible character, found {text!r}")
            if self.named_tokens.count(text) > 1:
                raise ValueError(f"the token {text!r} is named twice")
        return self

    @property
    def named_tokens(self) -> list[str]:
        """All tokens to add, the special ones last."""
        return [*self.add_tokens, *self.add_special_tokens]


class TrainingSettings(Settings):
    """How to train: rate, batch, optimizer, evaluation and checkpoints."""

    learning_rate: float | Literal["auto"] = Field(
        default="auto", description="peak rate; auto: 2e-4 for lora and qlora, 1e-4 for freeze, 2e-5 for full"
    )
    num_train_epochs: float = Field(default=3.0, gt=0, description="passes over the rows")
    max_steps: int | None = Field(default=None, ge=1, description="optimizer steps, instead of num_train_epochs")
    batch_size: int = Field(default=16, ge=1, description="rows in one optimizer step")
    per_device_train_batch_size: int | None = Field(
        default=None, ge=1, description="with gradient_accumulation_steps: another form of batch_size"
    )
    gradient_accumulation_steps: int | None = Field(default=None, ge=1, description="see per_device_train_batch_size")
    micro_batch_tokens: int | Literal["auto"] = Field(default="auto", description="tokens computed in one forward pass")
    layout: Literal["auto", "tree", "packed", "padded"] = Field(
        default="auto",
        description="tree: shared prefixes once; packed: rows side by side; padded: one row a line",
    )
    neftune_noise_alpha: float | None = Field(
        default=None, gt=0, description="noise on the embeddings (arXiv:2310.05914), scaled by the length of each row"
    )
    warmup_steps: float = Field(
        default=0.0, ge=0, description="steps in which the rate rises; below 1 a share of all steps"
    )
    lr_scheduler_type: Schedule = Field(default="cosine", description="how the rate falls after the warm-up")
    lr_scheduler_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="such as min_lr of cosine_with_min_lr, num_decay_steps of warmup_stable_decay"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay; never on norms and biases")
    optim: Optimizer = Field(default="adamw_torch", description="optimizer; the 8-bit ones are from bitsandbytes")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, ge=0, description="clip gradients to this norm; 0: do not clip")
    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop",
        description="a step whose loss or gradient is infinite or not a number: stop the run (exit code 4), or skip "
        "the step and go on with unchanged weights",
    )
    spike_sigma_factor: float | None = Field(
        default=None,
        gt=0,
        description="skip a step whose loss or gradient norm is so many standard deviations above the mean of the last "
        "128 steps (6 is usual); default: skip none",
    )
    max_skipped_steps: int = Field(
        default=5, ge=1, description="steps in a row that may be skipped; one more stops the run (exit code 4)"
    )
    logging_strategy: Literal["steps", "epoch", "no"] = Field(
        default="steps", description="when a line of metrics is written; no: only after the last step"
    )
    logging_steps: int = Field(default=10, ge=1, description="steps between lines of metrics")
    eval_strategy: Literal["steps", "epoch", "no"] = Field(default="steps", description="when to validate")
    eval_steps: int = Field(default=50, ge=1, description="steps between validations")
    save_strategy: Literal["steps", "epoch", "no"] = Field(
        default="steps", description="no: save only after the last step"
    )
    save_steps: int = Field(default=100, ge=1, description="steps between checkpoints")
    save_total_limit: int | None = Field(default=None, ge=1, description="checkpoints to keep, besides best and last")
    save_optimizer: Literal["newest", "all"] = Field(
        default="newest", description="checkpoints that keep the optimizer's state, from which a run continues exactly"
    )
    check_disk: bool = Field(default=True, description="refuse a run whose checkpoints do not fit on the disk")
    load_best_model_at_end: bool = Field(
        default=False,
        description="end with the weights of the best step; the rows that select it do not judge",
    )
    metric_for_best_model: str = Field(
        default="loss",
        description="loss (the objective's), perplexity, bits_per_byte or token_accuracy of sft, preference_accuracy, "
        "reward_accuracy or reward_margin of dpo and orpo, a metric of evaluation.during, or a name that "
        "evaluation.compute_metrics gives",
    )
    greater_is_better: bool | None = Field(
        default=None,
        description="of metric_for_best_model; default: false for loss, perplexity and bits_per_byte, else true",
    )
    early_stopping_patience: int | None = Field(
        default=None, ge=1, description="stop after this number of validations in a row without improvement"
    )
    early_stopping_threshold: float = Field(
        default=0.0, ge=0, description="smallest change of the metric that counts as improvement"
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        default="auto", description="recompute activations to save memory"
    )
    tf32: bool | None = Field(default=None, description="matrix products in TF32 on an NVIDIA GPU: faster, not exact")
    seed: int = Field(default=0, ge=0, lt=2**32)
    threads: int | Literal["auto"] = Field(
        default="auto", description="CPU threads of a forward pass; auto: OMP_NUM_THREADS, else all"
    )
    report_to: list[ReporterName] | Literal["auto"] = Field(
        default="auto",
        description="tensorboard, trackio, mlflow, wandb (offline), or none; auto: tensorboard if it is installed",
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _name_or_none(cls, value: Any) -> Any:
        if value in (["none"], ["auto"], "auto"):
            return [] if value == ["none"] else "auto"
        return ([] if value == "none" else [value]) if isinstance(value, str) else value

    @field_validator("metric_for_best_model", mode="after")
    @classmethod
    def _without_prefix(cls, value: str) -> str:
        """transformers also accepts the name with the prefix eval_."""
        return value.removeprefix("eval_")

    @field_validator("micro_batch_tokens", "threads", "learning_rate", mode="after")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if value != "auto" and value <= 0:
            raise ValueError(f"must be above 0, found {value:g}")
        if value != "auto" and value > LARGEST:
            raise ValueError(f"must be below {LARGEST:g}, found {value:g}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _batch_size_from_parts(cls, value: Any) -> Any:
        """Computes batch_size as per_device_train_batch_size x gradient_accumulation_steps."""
        if not isinstance(value, Mapping) or value.get("per_device_train_batch_size") is None:
            return value
        parts = value["per_device_train_batch_size"], value.get("gradient_accumulation_steps") or 1
        if not all(type(part) is int for part in parts):
            return value  # the type error is reported by the field itself
        product = parts[0] * parts[1]
        if value.get("batch_size", product) != product:
            raise ValueError(
                f"batch_size {value['batch_size']} contradicts per_device_train_batch_size x "
                f"gradient_accumulation_steps = {product}: give one of them"
            )
        return {**value, "batch_size": product}

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> TrainingSettings:
        given = self.model_fields_set
        if self.max_steps is not None and {"max_steps", "num_train_epochs"} <= given:
            raise ValueError("max_steps and num_train_epochs say the same thing: give one of them")
        if self.gradient_accumulation_steps and not self.per_device_train_batch_size:
            raise ValueError("gradient_accumulation_steps needs per_device_train_batch_size; or give batch_size alone")
        for kind in ("logging", "eval", "save"):
            if f"{kind}_steps" in given and getattr(self, f"{kind}_strategy") != "steps":
                raise ValueError(
                    f"{kind}_steps has no meaning under {kind}_strategy: {getattr(self, f'{kind}_strategy')}"
                )
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            raise ValueError("lr_scheduler_type: constant has no warm-up; use constant_with_warmup")
        if self.warmup_steps > 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(f"warmup_steps is a whole number of steps or a share below 1, found {self.warmup_steps:g}")
        check_arguments(self.lr_scheduler_type, self.lr_scheduler_kwargs)
        return self

    @model_validator(mode="after")
    def _no_setting_is_ignored(self) -> TrainingSettings:
        if self.layout == "tree" and self.neftune_noise_alpha is not None:
            raise ValueError(
                "neftune_noise_alpha scales noise by the length of each row, and rows in layout: tree share tokens; "
                "use layout: packed, or leave layout out"
            )
        betas = ("adam_beta1", "adam_beta2", "adam_epsilon")
        unread = betas if self.optim in WITHOUT_BETAS else betas[2:] if self.optim == "lion_32bit" else ()
        for name in unread:
            if self.differs(name):
                raise ValueError(f"{name} has no meaning under optim: {self.optim}")
        if self.differs("max_skipped_steps") and self.on_nonfinite == "stop" and self.spike_sigma_factor is None:
            raise ValueError("max_skipped_steps needs on_nonfinite: skip or spike_sigma_factor")
        if not self.selects:
            for name in ("metric_for_best_model", "greater_is_better", "early_stopping_threshold"):
                if self.differs(name):
                    raise ValueError(f"{name} needs load_best_model_at_end: true or early_stopping_patience")
        elif self.eval_strategy == "no":
            raise ValueError(f"{self.selected_by} needs validations, and eval_strategy is no")
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise ValueError("early_stopping_threshold needs early_stopping_patience")
        metric, greater = self.metric_for_best_model, self.greater_is_better
        if greater is not None and metric in (LOWER_IS_BETTER if greater else HIGHER_IS_BETTER):
            raise ValueError(f"greater_is_better: {str(greater).lower()} contradicts metric_for_best_model: {metric}")
        return self

    @property
    def wanted_layout(self) -> Literal["tree", "packed", "padded"]:
        """How rows are laid out if the model allows it."""
        if self.layout != "auto":
            return self.layout
        return "tree" if self.neftune_noise_alpha is None else "packed"

    @property
    def selects(self) -> bool:
        """Whether held-out rows select the step whose weights the run ends with."""
        return self.selected_by is not None

    @property
    def selected_by(self) -> str | None:
        """The setting that makes held-out rows select a step."""
        if self.load_best_model_at_end:
            return "load_best_model_at_end"
        return None if self.early_stopping_patience is None else "early_stopping_patience"

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher metric_for_best_model is better; by default not if its name ends in loss or perplexity."""
        if self.greater_is_better is not None:
            return self.greater_is_better
        if ":" in self.metric_for_best_model:  # a function that scores answers, whatever it is called
            return True
        if self.metric_for_best_model in CALIBRATION_METRICS:
            return False
        return not self.metric_for_best_model.endswith(LOWER_IS_BETTER)


class EvaluationSettings(Settings):
    """How base and tuned model are compared on held-out rows."""

    metrics: Names = Field(
        default_factory=list, description="the first decides the verdict; default: loss; docs/metrics.md lists them"
    )
    during: Names = Field(
        default_factory=list,
        description="metrics of answers, such as exact_match, that every validation measures on some of its rows; "
        "metric_for_best_model may name one of them",
    )
    during_rows: int = Field(default=64, ge=1, description="rows that a validation answers for `during`, drawn by seed")
    compute_metrics: str | None = Field(
        default=None, description="file.py:function, called with (logits, labels) as by transformers' Trainer"
    )
    normalize: list[NormalForm] = Field(
        default_factory=list,
        description="what exact_match, accuracy, macro_f1 and regex_match overlook: case, punctuation, space",
    )
    json_schema: dict[str, Any] | None = Field(
        default=None, description="the JSON Schema that the metric json_schema checks answers against"
    )
    answer_pattern: str | None = Field(
        default=None,
        min_length=1,
        description="a regular expression for the metric regex_match; its first group is compared, if it has one",
    )
    judge: JudgeSettings | None = Field(
        default=None, description="the model behind an endpoint that the metric judge asks; see evaluation.judge below"
    )
    max_new_tokens: int = Field(default=256, ge=1, description="limit on the tokens of an answer")
    max_rows: int | None = Field(default=None, ge=1, description="limit on the rows to evaluate, drawn by seed")
    batch_size: int = Field(default=16, ge=1, description="answers at a time; greedy on a CPU: up to 64 if keys fit")
    do_sample: bool = False
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0)
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="confidence of the interval of the difference")
    resamples: int = Field(default=10_000, ge=100, description="resamples of the paired bootstrap")
    margin: float | None = Field(
        default=None,
        gt=0,
        description="test whether the tuned model is worse by no more than this, in the unit of the metric that "
        "decides: 0.02 is 2 points of a rate",
    )
    samples: int = Field(default=5, ge=0, description="number of answers to show side by side")
    whole_answers: bool | PositiveInt = Field(
        default=100,
        description="answers decoded whole beside the samples: only they show broken ones. The others end once they "
        "cannot be right (exact_match) or a label (accuracy, macro_f1), if no metric needs more. true: all",
    )
    probe: bool | UserPath = Field(
        default=False,
        description="ask both models the questions of the built-in probe (true) or of a file, to see what was lost",
    )
    divergence: bool = Field(
        default=False,
        description="measure how far the predictions moved from the base's on general text and on its own answers",
    )
    memorisation: bool = Field(
        default=False,
        description="count training rows that come back word for word from their first tokens",
    )

    baselines: Literal["auto", "none"] | list[BaselineName] = Field(
        default="auto",
        description="simple ways to answer, measured beside the models: majority, nearest, linear, few_shot; auto: the "
        "first three where answers are short and scikit-learn is installed; none",
    )
    few_shot_rows: int = Field(default=4, ge=1, description="training rows in the prompt of the baseline few_shot")

    @model_validator(mode="after")
    def _sampling_is_on(self) -> EvaluationSettings:
        for name in ("temperature", "top_p"):
            if name in self.model_fields_set and not self.do_sample and getattr(self, name) != 1.0:
                raise ValueError(f"{name} has no effect while do_sample is false: set do_sample: true or leave it out")
        for metrics in (self.metrics, self.during):
            if len(set(metrics)) != len(metrics):
                raise ValueError("a metric is named twice")
        if self.baselines and self.baselines not in ("auto", "none") and not self.answer_metrics:
            raise ValueError("baselines need a metric of answers\nAdd one to evaluation.metrics, such as exact_match.")
        for metric, key in NEEDED_KEYS.items():
            if metric in (*self.metrics, *self.during) and getattr(self, key) is None:
                raise ValueError(f"the metric {metric} needs evaluation.{key}")
        return self

    @model_validator(mode="after")
    def _answers_while_training(self) -> EvaluationSettings:
        for name in self.during:
            if name in (*TOKEN_METRICS, *PREFERENCE_METRICS):
                raise ValueError(f"during: {name} needs no answers; training.metric_for_best_model may name it alone")
            if name in PAIR_METRICS:
                raise ValueError(f"during: {name} compares the answers of two models, and a validation has one")
        if self.differs("during_rows") and not self.during:
            raise ValueError("during_rows has no meaning without during")
        if self.differs("few_shot_rows") and "few_shot" not in self.baselines:
            raise ValueError("few_shot_rows has no meaning unless baselines names few_shot")
        return self

    @property
    def answer_metrics(self) -> list[str]:
        """The metrics that score the answers of one model."""
        return [name for name in self.metrics if name not in NOT_OF_ONE_ANSWER]


class Recipe(Settings):
    """A whole run, as in the recipe file."""

    model: Annotated[ModelSettings, short_for("path")]
    data: DataSettings
    method: Annotated[MethodSettings, short_for("name")] = Field(default_factory=LoraSettings)
    objective: Annotated[ObjectiveSettings, short_for("name")] = Field(default_factory=SftSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    output_dir: UserPath = Field(min_length=1, description="the run folder")

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        sources = self.data.sources("train")
        if all(source.format == "text" for source in sources):
            refuse_answer_metrics(self.evaluation.metrics)
            refuse_answer_metrics(self.evaluation.during, key="evaluation.during")
        if self.model.named_tokens and getattr(self.method, "init_lora_weights", True) == "eva":
            raise ValueError("PEFT cannot combine init_lora_weights: eva with model.add_tokens; use another one")
        held_out = self.data.eval is None or bool(self.data.eval)
        if not held_out and "eval_steps" in self.training.model_fields_set:
            raise ValueError("training.eval_steps has nothing to evaluate on: data.eval is 0")
        if not held_out and self.evaluation.metrics:
            raise ValueError("evaluation.metrics has nothing to judge: data.eval is 0")
        if self.evaluation.during and (not held_out or self.training.eval_strategy == "no"):
            why = "training.eval_strategy is no" if held_out else "data.eval is 0"
            raise ValueError(f"evaluation.during needs validations, and {why}")
        if not held_out and self.training.selects:
            raise ValueError(f"training.{self.training.selected_by} needs held-out rows, and data.eval is 0")
        if self.model.named_tokens and isinstance(getattr(self.method, "trainable_token_indices", None), dict):
            raise ValueError("method.trainable_token_indices must be a list if model.add_tokens is set")
        refuse_foreign_metrics(self.evaluation.metrics, self.objective.name)
        if self.evaluation.baselines not in ("auto", "none", []) and self.objective.name != "sft":
            raise ValueError(
                f"objective: {self.objective.name} learns from preferences; set evaluation.baselines: none"
            )
        metric, known = self.training.metric_for_best_model, METRICS_OF_LOGITS[self.objective.name]
        foreign = metric in (*TOKEN_METRICS, *PREFERENCE_METRICS) and metric not in known
        if foreign:
            raise ValueError(
                f"training.metric_for_best_model: {metric} has no meaning under objective: {self.objective.name}; "
                f"use {', '.join(known)}, or what a function under evaluation.compute_metrics gives"
            )
        if metric in self.evaluation.during:
            greater, lower = self.training.greater_is_better, metric in CALIBRATION_METRICS
            if greater is lower:
                raise ValueError(
                    f"greater_is_better: {str(greater).lower()} contradicts metric_for_best_model: {metric}"
                )
        elif metric not in known and self.evaluation.compute_metrics is None:
            raise ValueError(
                f"training.metric_for_best_model: {metric} is not known at a validation\n"
                f"Use {', '.join(known)}, a metric of answers that evaluation.during names, too, or what a function "
                "under evaluation.compute_metrics gives."
            )
        return self

    @property
    def selects_by_answers(self) -> bool:
        """Whether the answers at validations select the step whose weights the run ends with."""
        return self.training.selects and self.training.metric_for_best_model in self.evaluation.during

    @property
    def learning_rate(self) -> float:
        """The peak learning rate; `auto` depends on method and objective."""
        rate = self.training.learning_rate
        return usual_rate(self.method.name, self.objective.name) if rate == "auto" else rate

    def with_values(self, **sections: Mapping[str, Any]) -> Recipe:
        """A copy with other values, given by section: ``with_values(training={"threads": 2})``."""
        updates = {name: getattr(self, name).model_copy(update=dict(values)) for name, values in sections.items()}
        return self.model_copy(update=updates)


def usual_rate(method: str, objective: str) -> float:
    """The peak learning rate of a method and an objective, for 1B to 30B parameters."""
    return (LEARNING_RATES if objective == "sft" else PREFERENCE_RATES)[method]


def refuse_foreign_metrics(metrics: list[str], objective: str) -> None:
    """Raises ValueError for a metric of logits that the objective does not have."""
    known = METRICS_OF_LOGITS[objective]
    refused = [name for name in metrics if name in (*TOKEN_METRICS, *PREFERENCE_METRICS) and name not in known]
    if refused:
        raise ValueError(
            f"evaluation.metrics: {', '.join(refused)} has no meaning under objective: {objective}; "
            f"use {', '.join(known)}, or a metric of answers such as exact_match"
        )


def refuse_answer_metrics(metrics: list[str], *, key: str = "evaluation.metrics") -> None:
    """Raises ValueError for a metric that compares answers, because raw text has none."""
    refused = [name for name in metrics if name not in TOKEN_METRICS]
    if refused:
        raise ValueError(
            f"{key}: {', '.join(refused)} compares answers, and raw text has none; use {', '.join(TOKEN_METRICS)}"
        )
