"""Every setting of a run: its name, default, bounds and help, and the checks across settings.

Names are those of transformers' TrainingArguments, PEFT's LoraConfig and BitsAndBytesConfig. Reading a recipe from
YAML, with line numbers in its errors, is in ``recipe_file.py``; this module knows no file.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from tunesmith.optimizers import WITHOUT_BETAS, Optimizer
from tunesmith.schedules import Schedule, check_arguments

Shape = Literal[
    "auto", "alpaca", "prompt_completion", "messages", "sharegpt", "text", "preference", "unpaired_preference"
]
SampleBy = Literal["line", "paragraph", "document"]  # datasets' name, and its values
PersonalData = Literal["email", "phone", "iban", "card", "secret"]
PERSONAL_DATA: tuple[str, ...] = get_args(PersonalData)
TOKEN_METRICS = ("loss", "perplexity", "token_accuracy")  # computed from logits; every run can have them
SELECTING = (
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "early_stopping_patience",
    "early_stopping_threshold",
)  # fmt: skip
LOWER_IS_BETTER = ("loss", "perplexity")
Reporter = Literal["tensorboard", "trackio", "mlflow", "wandb"]
PREFERENCE_METRICS = ("preference_accuracy", "reward_accuracy", "reward_margin")  # of pairs of answers
HIGHER_IS_BETTER = ("token_accuracy", *PREFERENCE_METRICS)
# What `learning_rate: auto` means: the rates at 1B to 30B parameters; `init` knows the size, see advice.py.
# freeze moves whole weights as full does, but a few layers must make the change that all make there: more than full,
# less than an adapter, which begins at zero.
LEARNING_RATES = {"full": 2e-5, "freeze": 1e-4, "lora": 2e-4, "qlora": 2e-4}
# The same under dpo, orpo and kto: TRL's default, and ten times that for an adapter, as TRL's guide advises.
PREFERENCE_RATES = {"full": 1e-6, "freeze": 4e-6, "lora": 1e-5, "qlora": 1e-5}  # freeze: between them, as above


class Settings(BaseModel):
    """Base of every section: unknown keys and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSettings(Settings):
    """Which model, and how its weights are held."""

    path: str = Field(min_length=1, description="hub id, folder, .gguf file, or the bundled model's name")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(default="auto", description="dtype of the weights")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    trust_remote_code: bool = Field(default=False, description="run Python code that the model's author ships")
    add_tokens: list[str] = Field(
        default_factory=list, description="tokens that the vocabulary gets besides, each one token wherever it stands"
    )
    add_special_tokens: list[str] = Field(
        default_factory=list, description="the same as special tokens, which are left out of decoded answers"
    )

    @field_validator("add_tokens", "add_special_tokens", mode="before")
    @classmethod
    def _one_token_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _tokens_are_texts(self) -> ModelSettings:
        for text in self.named_tokens:
            if not text.strip():
                raise ValueError(f"a token needs a character that can be seen, found {text!r}")
            if self.named_tokens.count(text) > 1:
                raise ValueError(f"the token {text!r} is named twice")
        return self

    @property
    def named_tokens(self) -> list[str]:
        """All tokens to add."""
        return [*self.add_tokens, *self.add_special_tokens]


class SourceSettings(Settings):
    """One file, folder, dataset or URL of rows."""

    path: str = Field(min_length=1, description="file, folder, hub id user/name[@revision], or fsspec URL")
    weight: float = Field(
        default=1.0, gt=0, le=100, description="how often an epoch sees each row; fractions are drawn by seed"
    )
    rows: int | None = Field(
        default=None, ge=1, description="rows of this source in an epoch, drawn by seed, in place of weight"
    )
    format: Shape = Field(default="auto", description="shape of the rows; auto finds it from their columns")
    name: str | None = Field(default=None, description="configuration of a hub dataset")
    split: str | None = Field(default=None, description="split of a dataset")
    columns: dict[str, str] = Field(default_factory=dict, description="field: column of the file that holds it")
    instruction: str | None = Field(default=None, description="one instruction for all rows")
    sample_by: SampleBy = Field(default="line", description="what is a document of a .txt file")

    @model_validator(mode="after")
    def _weight_or_rows(self) -> SourceSettings:
        if self.rows is not None and "weight" in self.model_fields_set:
            raise ValueError("rows and weight say the same thing: give one of them")
        return self


class CleanSettings(Settings):
    """What is taken out of the rows to train on. Nothing is, unless it is named here."""

    dedupe: bool = Field(default=False, description="of rows that are the same, the first stays")
    near_dedupe: bool | float = Field(
        default=False, description="of near duplicates the first stays; a number is the similarity that makes one"
    )
    drop_leaked: bool = Field(
        default=False, description="rows whose prompt is held out; with near_dedupe, near duplicates of those too"
    )
    mask_pii: bool | list[PersonalData] = Field(
        default=False, description="personal data replaced by its kind: all kinds, or a list of them"
    )
    balance: int | None = Field(default=None, ge=1, description="rows of one answer at most, drawn by seed")
    max_length: bool = Field(default=False, description="rows longer than data.max_length; as data.too_long: drop")

    @field_validator("near_dedupe", mode="after")
    @classmethod
    def _similarity_in_bounds(cls, value: bool | float) -> bool | float:
        if not isinstance(value, bool) and not 0.5 <= value <= 1:
            raise ValueError(f"a similarity is at least 0.5 and at most 1, found {value:g}")
        return value

    @property
    def mask(self) -> tuple[str, ...]:
        """The kinds of personal data to mask."""
        if isinstance(self.mask_pii, bool):
            return PERSONAL_DATA if self.mask_pii else ()
        return tuple(self.mask_pii)


class DataSettings(Settings):
    """Rows, their shape, and the rules that turn them into tokens."""

    train: list[SourceSettings] = Field(min_length=1, description="what to train on")
    eval: float | list[SourceSettings] | None = Field(
        default=None,
        description="a share held out by prompt hash, or sources; none: the dataset's own test split, else 0.1",
    )
    test: float | list[SourceSettings] | None = Field(
        default=None,
        description="a share or sources kept apart from training; they judge where data.eval selects the step",
    )
    group: str | None = Field(
        default=None, description="column whose value, in place of the prompt, keeps rows on one side of a split"
    )
    stratify: bool = Field(default=False, description="hold out the same share of each answer")
    clean: CleanSettings = Field(default_factory=CleanSettings, description="what is taken out before training")
    max_lost: float | None = Field(
        default=None, ge=0, lt=1, description="stop when a larger share of all rows read is lost on the way"
    )
    format: Shape = Field(default="auto", description="default for every source")
    name: str | None = Field(default=None, description="default for every source")
    split: str | None = Field(default=None, description="default for the training sources")
    columns: dict[str, str] = Field(default_factory=dict, description="default for every source")
    instruction: str | None = Field(default=None, description="default for every source")
    sample_by: SampleBy = Field(default="line", description="default for every source; each has .txt files then")
    max_length: int = Field(default=2048, ge=8, description="tokens in a row, prompt and answer together")
    too_long: Literal["auto", "error", "split", "drop", "truncate"] = Field(
        default="auto",
        description="what happens to longer rows; auto: raw text is split into blocks, a conversation is an error",
    )
    on_error: Literal["stop", "skip"] = Field(default="stop", description="skip sets bad rows aside in rejected.jsonl")
    control_tokens: Literal["error", "text"] = Field(
        default="error", description="control tokens inside a message's text"
    )
    chat_template: str | None = Field(
        default=None, description="Jinja text, or a file, in place of the model's template"
    )
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="such as enable_thinking: false")
    date: str | None = Field(default=None, pattern=r"^\d{4}-\d\d-\d\d$", description="the date a template prints")
    train_on: Literal["assistant", "last"] = Field(
        default="assistant", description="all assistant turns, or the last only"
    )

    @field_validator("train", mode="before")
    @classmethod
    def _one_source_is_a_list(cls, value: Any) -> Any:
        return _as_sources(value)

    @field_validator("clean", mode="before")
    @classmethod
    def _names_or_settings(cls, value: Any) -> Any:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            return value
        if "balance" in value:
            raise ValueError("balance needs a number of rows: clean: {balance: 500}")
        return dict.fromkeys(value, True)

    @field_validator("eval", "test", mode="before")
    @classmethod
    def _eval_share_or_sources(cls, value: Any) -> Any:
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return value
        return _as_sources(value)

    @field_validator("eval", "test", mode="after")
    @classmethod
    def _share_in_bounds(cls, value: Any) -> Any:
        if isinstance(value, float) and not 0 <= value < 1:
            raise ValueError(f"a share is at least 0 and below 1, found {value:g}")
        return value

    @field_validator("date", mode="after")
    @classmethod
    def _in_the_calendar(cls, value: str | None) -> str | None:
        if value is not None:
            datetime.date.fromisoformat(value)  # its own message says what is wrong
        return value

    @model_validator(mode="after")
    def _sides_agree(self) -> DataSettings:
        shares = [share for share in (self.eval, self.test) if isinstance(share, float)]
        if sum(shares) >= 1:
            raise ValueError("data.eval and data.test leave no row to train on")
        if self.stratify and self.group is not None:
            raise ValueError("stratify and group cannot both decide on which side a row is: give one of them")
        if self.clean.max_length and self.too_long == "truncate":
            raise ValueError("clean.max_length leaves long rows out and too_long: truncate cuts them: give one of them")
        return self

    def if_too_long(self, *, raw_text: bool) -> Literal["error", "split", "drop", "truncate"]:
        """What becomes of a row of more than ``max_length`` tokens; only raw text is split."""
        if raw_text and self.too_long == "split":
            return "split"
        if self.clean.max_length:
            return "drop"
        if self.too_long in ("auto", "split"):
            return "split" if raw_text else "error"
        return self.too_long

    def sources(self, which: Literal["train", "eval", "test"]) -> list[SourceSettings]:
        """The sources of one side with the section's defaults filled in; no sources for a share."""
        own = getattr(self, which)
        if not isinstance(own, list):
            return []
        shared = ["format", "name", "columns", "instruction", "sample_by"] + (["split"] if which == "train" else [])
        return [_fill(source, {name: getattr(self, name) for name in shared}) for source in own]


def _as_sources(value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


def _fill(source: SourceSettings, defaults: Mapping[str, Any]) -> SourceSettings:
    return source.model_copy(
        update={key: value for key, value in defaults.items() if key not in source.model_fields_set}
    )


class FullSettings(Settings):
    """Full fine-tuning: every parameter trains."""

    name: Literal["full"] = "full"


class FreezeSettings(Settings):
    """Fine-tuning of a part: the last decoder layers and what is named train, the other weights stay as they are."""

    name: Literal["freeze"] = "freeze"
    trainable_layers: int = Field(default=2, ge=0, description="how many of the last decoder layers train")
    trainable_modules: str | list[str] | None = Field(
        default=None, description="what else trains: names of modules or weights, or a regular expression"
    )
    train_embeddings: bool = Field(default=False, description="the input embeddings and the head train too")

    @field_validator("trainable_modules", mode="after")
    @classmethod
    def _is_a_pattern(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{value!r} is no regular expression ({error}); names go in a list") from None
        return value

    @model_validator(mode="after")
    def _something_trains(self) -> FreezeSettings:
        if not (self.trainable_layers or self.trainable_modules or self.train_embeddings):
            raise ValueError(
                "trainable_layers: 0 leaves nothing to train: name trainable_modules, or set train_embeddings: true"
            )
        return self


INITS = ("gaussian", "orthogonal", "pissa", "olora", "eva")
REWRITES_BASE = ("pissa", "olora")  # the adapter begins with a part of the base's weights, which leaves them


class EvaSettings(Settings):
    """How EVA (arXiv:2410.07170) begins; every field is a field of peft.EvaConfig."""

    rho: float = Field(default=2.0, ge=1, description="a module's rank is at most r * rho; 1: every rank stays r")
    tau: float = Field(
        default=0.99, ge=0, lt=1, description="cosine similarity between two steps from which a direction is settled"
    )
    use_label_mask: bool = Field(default=True, description="look at supervised tokens alone")
    label_mask_value: int = Field(default=-100, description="what marks other tokens; there is no other value")
    whiten: bool = Field(default=False, description="divide each direction by the root of its singular value")
    adjust_scaling_factors: bool = Field(
        default=True, description="lora_alpha in proportion to a module's rank, so that updates keep their scale"
    )

    @field_validator("label_mask_value", mode="after")
    @classmethod
    def _as_labels_are_marked(cls, value: int) -> int:
        if value != -100:
            raise ValueError("tokens that are not supervised are marked with -100, as everywhere in transformers")
        return value


class AdapterSettings(Settings):
    """What lora and qlora share; every field is a field of peft.LoraConfig, or of its LoRA+ optimizer."""

    task_type: Literal["CAUSAL_LM"] = Field(default="CAUSAL_LM", description="what PEFT is told the model does")

    r: int = Field(default=16, ge=1, description="rank of the update")
    lora_alpha: float = Field(default=32, gt=0, description="the update is scaled by lora_alpha / r")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapter's input")
    target_modules: str | list[str] = Field(
        default="all-linear", description="names, a regular expression, or all-linear"
    )
    exclude_modules: str | list[str] | None = Field(
        default=None, description="names or a regular expression to leave out"
    )
    bias: Literal["none", "all", "lora_only"] = Field(default="none", description="which biases train")
    use_rslora: bool = Field(default=False, description="scale by lora_alpha / sqrt(r) (arXiv:2312.03732)")
    use_dora: bool = Field(default=False, description="weight-decomposed LoRA (arXiv:2402.09353)")
    init_lora_weights: bool | str = Field(
        default=True,
        description="how A and B begin: true, false, gaussian, orthogonal, pissa (arXiv:2404.02948), pissa_niter_4 "
        "(the same by a fast, randomized SVD), olora (arXiv:2406.01775), eva (from the first rows, arXiv:2410.07170)",
    )
    eva_config: EvaSettings | None = Field(default=None, description="how eva begins; see peft.EvaConfig")
    modules_to_save: list[str] | None = Field(default=None, description="modules that train whole and are saved beside")
    layers_to_transform: int | list[int] | None = Field(default=None, description="layer indexes that get an adapter")
    layers_pattern: str | list[str] | None = Field(default=None, description="name of the list of layers")
    rank_pattern: dict[str, int] = Field(default_factory=dict, description="module name: its own r")
    alpha_pattern: dict[str, float] = Field(default_factory=dict, description="module name: its own lora_alpha")
    adapter_name_or_path: str | None = Field(
        default=None, description="run, checkpoint or adapter folder to go on from; its own settings hold"
    )
    adapter_sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="of the weights of adapter_name_or_path"
    )
    loraplus_lr_ratio: float | None = Field(
        default=None,
        gt=0,
        description="LoRA+ (arXiv:2402.12354): the learning rate of B, and of vectors that train, over that of A, "
        "which is training.learning_rate and what progress and metrics show; the paper advises 16",
    )
    loraplus_lr_embedding: float = Field(
        default=1e-6, gt=0, description="LoRA+: peak learning rate of adapters of an embedding"
    )

    @field_validator("init_lora_weights", mode="after")
    @classmethod
    def _known_beginning(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and value not in INITS and not re.fullmatch(r"pissa_niter_[1-9]\d*", value):
            names = ", ".join(INITS)
            raise ValueError(f"expected true, false, {names} or pissa_niter_4 (any number), found {value!r}")
        return value

    @model_validator(mode="after")
    def _extras_have_an_effect(self) -> AdapterSettings:
        if self.eva_config is not None and self.init_lora_weights != "eva":
            raise ValueError("eva_config has no effect without init_lora_weights: eva")
        if self.adapter_name_or_path is not None:
            for name, usual in (("init_lora_weights", True), ("trainable_token_indices", None)):
                if getattr(self, name) != usual:
                    raise ValueError(f"{name} has no effect on an adapter that is there (adapter_name_or_path)")
        if self.init_lora_weights == "eva" and self.trainable_token_indices is not None:
            raise ValueError("init_lora_weights: eva and trainable_token_indices do not go together in PEFT")
        rate = "loraplus_lr_embedding"
        if self.loraplus_lr_ratio is None and getattr(self, rate) != type(self).model_fields[rate].default:
            raise ValueError(f"{rate} has no effect without loraplus_lr_ratio")
        return self

    @property
    def rewrites_base(self) -> bool:
        """Whether the adapter begins with a part of the base's weights."""
        return isinstance(self.init_lora_weights, str) and self.init_lora_weights.startswith(REWRITES_BASE)

    trainable_token_indices: list[int] | dict[str, list[int]] | None = Field(
        default=None, description="ids whose rows of the embedding train; or a table's name: ids"
    )

    @field_validator("trainable_token_indices", mode="after")
    @classmethod
    def _ids_of_tokens(cls, value: Any) -> Any:
        for ids in value.values() if isinstance(value, dict) else [value] if value is not None else []:
            if not ids or min(ids) < 0 or len(set(ids)) < len(ids):
                raise ValueError(f"must name ids from 0 on, each once, found {ids}")
        return value

    @model_validator(mode="after")
    def _pattern_needs_layers(self) -> AdapterSettings:
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise ValueError("layers_pattern says where layers_to_transform counts: give layers_to_transform too")
        pattern = isinstance(self.target_modules, str) and self.target_modules != "all-linear"
        if pattern and self.layers_to_transform is not None:
            raise ValueError("layers_to_transform needs target_modules as a list of names, or all-linear")
        return self

    @model_validator(mode="after")
    def _one_beginning(self) -> AdapterSettings:
        if self.adapter_sha256 is not None and self.adapter_name_or_path is None:
            raise ValueError("adapter_sha256 is of the weights of adapter_name_or_path: give that too")
        if self.adapter_name_or_path is not None and self.init_lora_weights is not True:
            raise ValueError("init_lora_weights has no effect with adapter_name_or_path, which is the beginning")
        return self


class LoraSettings(AdapterSettings):
    """LoRA (Hu et al. 2021, arXiv:2106.09685) by PEFT."""

    name: Literal["lora"] = "lora"
    load_in_8bit: bool = Field(default=False, description="over a base that bitsandbytes holds in 8 bits")
    llm_int8_threshold: float = Field(
        default=6.0, description="activations from here on are not rounded to 8 bits; none is here, whatever its size"
    )
    llm_int8_skip_modules: list[str] | None = Field(
        default=None, description="modules that stay unquantized, besides the output layer"
    )

    @model_validator(mode="after")
    def _base_stays_packed(self) -> LoraSettings:
        if self.load_in_8bit and (self.rewrites_base or self.init_lora_weights == "orthogonal"):
            raise ValueError(
                f"init_lora_weights: {self.init_lora_weights} does not work over 8-bit weights, which it is computed "
                "from or has the dtype of: leave load_in_8bit out, or use init_lora_weights: true, gaussian or eva"
            )
        return self

    @model_validator(mode="after")
    def _eight_bits_are_meant(self) -> LoraSettings:
        for name in ("llm_int8_threshold", "llm_int8_skip_modules"):
            if name in self.model_fields_set and not self.load_in_8bit:
                raise ValueError(f"{name} has no effect without load_in_8bit: true")
        if self.llm_int8_threshold != 6.0:
            raise ValueError(
                "llm_int8_threshold has no effect: weights are held in 8 bits, and activations are not rounded, so "
                "none is an outlier; leave it out"
            )
        return self


class QloraSettings(AdapterSettings):
    """QLoRA (Dettmers et al. 2023, arXiv:2305.14314): LoRA over a 4-bit base by bitsandbytes."""

    name: Literal["qlora"] = "qlora"
    load_in_4bit: bool = Field(default=True, description="what qlora is; there is no other value")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field(default="nf4", description="4-bit data type")
    bnb_4bit_use_double_quant: bool = Field(default=True, description="quantize the quantization constants too")
    bnb_4bit_compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="dtype of matrix products; auto: float32 on a CPU, bfloat16 on a GPU that has it"
    )

    @field_validator("load_in_4bit", mode="after")
    @classmethod
    def _in_four_bits(cls, value: bool) -> bool:
        if not value:
            raise ValueError("qlora is LoRA over a 4-bit base; without it the method is lora")
        return value

    @model_validator(mode="after")
    def _base_stays_packed(self) -> QloraSettings:
        if self.rewrites_base:
            raise ValueError(
                f"init_lora_weights: {self.init_lora_weights} takes the adapter out of the base's weights, and what is "
                "left would be rounded to 4 bits again, so step zero would not be the base: use method: lora, or "
                "init_lora_weights: eva"
            )
        if self.init_lora_weights == "orthogonal":
            raise ValueError(
                "init_lora_weights: orthogonal does not work over 4-bit weights, whose dtype PEFT would draw it in: "
                "use init_lora_weights: true, gaussian or eva"
            )
        return self


def _method_name(value: Any) -> str:
    return value.get("name", "lora") if isinstance(value, Mapping) else getattr(value, "name", "lora")


MethodSettings = Annotated[
    Annotated[FullSettings, Tag("full")]
    | Annotated[FreezeSettings, Tag("freeze")]
    | Annotated[LoraSettings, Tag("lora")]
    | Annotated[QloraSettings, Tag("qlora")],
    Discriminator(_method_name),
]
METHOD_SETTINGS: dict[str, type[Settings]] = {
    "full": FullSettings,
    "freeze": FreezeSettings,
    "lora": LoraSettings,
    "qlora": QloraSettings,
}


class SftSettings(Settings):
    """Supervised fine-tuning: the likelihood of the answers' tokens is raised."""

    name: Literal["sft"] = "sft"


class DpoSettings(Settings):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290); names and meaning are TRL's."""

    name: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0, description="how much leaving the untuned model costs; tau under ipo")
    loss_type: Literal["sigmoid", "robust", "hinge", "ipo"] = Field(
        default="sigmoid",
        description="of the difference of log-ratios; robust: arXiv:2403.00409, ipo: arXiv:2310.12036",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="probability that a preference is the wrong way round (sigmoid, robust)"
    )

    @model_validator(mode="after")
    def _smoothing_has_an_effect(self) -> DpoSettings:
        if self.label_smoothing and self.loss_type not in ("sigmoid", "robust"):
            raise ValueError(
                f"label_smoothing has no effect under loss_type: {self.loss_type}; use loss_type: robust or sigmoid"
            )
        return self


class OrpoSettings(Settings):
    """Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691): no reference model."""

    name: Literal["orpo"] = "orpo"
    beta: float = Field(default=0.1, gt=0, description="weight of the odds ratio, lambda in the paper")
    nll_tokens: Literal["answer", "all"] = Field(
        default="answer", description="of the chosen row, learned by likelihood; all: the prompt's too, as in TRL"
    )


class KtoSettings(Settings):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306); names and meaning are TRL's."""

    name: Literal["kto"] = "kto"
    beta: float = Field(default=0.1, gt=0, description="how much leaving the untuned model costs")
    desirable_weight: float = Field(default=1.0, gt=0, description="of the loss of desirable answers")
    undesirable_weight: float = Field(default=1.0, gt=0, description="of the loss of undesirable answers")


def _objective_name(value: Any) -> str:
    return value.get("name", "sft") if isinstance(value, Mapping) else getattr(value, "name", "sft")


ObjectiveSettings = Annotated[
    Annotated[SftSettings, Tag("sft")]
    | Annotated[DpoSettings, Tag("dpo")]
    | Annotated[OrpoSettings, Tag("orpo")]
    | Annotated[KtoSettings, Tag("kto")],
    Discriminator(_objective_name),
]
OBJECTIVE_SETTINGS: dict[str, type[Settings]] = {
    "sft": SftSettings, "dpo": DpoSettings, "orpo": OrpoSettings, "kto": KtoSettings,
}  # fmt: skip
OBJECTIVE_SHAPES: dict[str, Shape] = {"dpo": "preference", "orpo": "preference", "kto": "unpaired_preference"}


class TrainingSettings(Settings):
    """The optimizer's steps."""

    learning_rate: float | Literal["auto"] = Field(
        default="auto", description="peak rate; auto: 2e-4 for lora and qlora, 1e-4 for freeze, 2e-5 for full"
    )
    num_train_epochs: float = Field(default=3.0, gt=0, description="passes over the rows")
    max_steps: int | None = Field(default=None, ge=1, description="optimizer steps, in place of num_train_epochs")
    batch_size: int = Field(default=16, ge=1, description="rows in one optimizer step")
    per_device_train_batch_size: int | None = Field(
        default=None, ge=1, description="with gradient_accumulation_steps: another way to say batch_size"
    )
    gradient_accumulation_steps: int | None = Field(default=None, ge=1, description="see per_device_train_batch_size")
    micro_batch_tokens: int | Literal["auto"] = Field(default="auto", description="tokens computed in one forward pass")
    layout: Literal["auto", "tree", "packed", "padded"] = Field(
        default="auto", description="shared prefixes once, rows side by side that share nothing, or padded rows"
    )
    neftune_noise_alpha: float | None = Field(
        default=None, gt=0, description="noise on the embeddings (arXiv:2310.05914), scaled by each row's own length"
    )
    warmup_steps: float = Field(
        default=0.0, ge=0, description="steps in which the rate rises; below 1 a share of all steps"
    )
    lr_scheduler_type: Schedule = Field(default="cosine", description="how the rate falls after the warm-up")
    lr_scheduler_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="such as min_lr of cosine_with_min_lr, num_decay_steps of warmup_stable_decay"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled decay; never on norms and biases")
    optim: Optimizer = Field(default="adamw_torch", description="optimizer; the 8-bit ones are bitsandbytes'")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, ge=0, description="gradients are clipped to this norm; 0: not clipped")
    logging_strategy: Literal["steps", "epoch", "no"] = Field(
        default="steps", description="when a line of metrics is written; no: after the last step only"
    )
    logging_steps: int = Field(default=10, ge=1, description="steps between lines of metrics")
    eval_strategy: Literal["steps", "epoch", "no"] = Field(default="steps", description="when validation loss is taken")
    eval_steps: int = Field(default=50, ge=1, description="steps between validation losses")
    save_strategy: Literal["steps", "epoch", "no"] = Field(default="steps", description="no: the last step only")
    save_steps: int = Field(default=100, ge=1, description="steps between checkpoints")
    save_total_limit: int | None = Field(default=None, ge=1, description="checkpoints kept; the best and the last stay")
    load_best_model_at_end: bool = Field(
        default=False, description="the best step's weights are the run's, found on held-out rows that do not judge"
    )
    metric_for_best_model: str = Field(
        default="loss",
        description="loss (the objective's), perplexity or token_accuracy of sft, preference_accuracy, reward_accuracy "
        "or reward_margin of dpo and orpo, or a name that evaluation.compute_metrics gives",
    )
    greater_is_better: bool | None = Field(
        default=None, description="of metric_for_best_model; none: false for loss and perplexity, else true"
    )
    early_stopping_patience: int | None = Field(
        default=None, ge=1, description="stop after so many validations in a row without a better metric"
    )
    early_stopping_threshold: float = Field(
        default=0.0, ge=0, description="how much better a metric must be to count as better"
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        default="auto", description="recompute activations to save memory"
    )
    tf32: bool | None = Field(default=None, description="matrix products in TF32 on an NVIDIA GPU: faster, not exact")
    seed: int = Field(default=0, ge=0, lt=2**32)
    threads: int | Literal["auto"] = Field(default="auto", description="CPU threads of a forward pass")
    report_to: list[Reporter] = Field(
        default_factory=lambda: ["tensorboard"], description="tensorboard, trackio, mlflow, wandb (offline), or none"
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _name_or_none(cls, value: Any) -> Any:
        if value == ["none"]:
            return []
        return ([] if value == "none" else [value]) if isinstance(value, str) else value

    @field_validator("metric_for_best_model", mode="after")
    @classmethod
    def _without_side(cls, value: str) -> str:
        """transformers takes the name with eval_ before it too."""
        return value.removeprefix("eval_")

    @field_validator("micro_batch_tokens", "threads", "learning_rate", mode="after")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if value != "auto" and value <= 0:
            raise ValueError(f"must be above 0, found {value:g}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _batch_size_from_parts(cls, value: Any) -> Any:
        """per_device_train_batch_size x gradient_accumulation_steps is accepted for batch_size."""
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
            raise ValueError("warm-up under lr_scheduler_type: constant would be ignored; use constant_with_warmup")
        if self.warmup_steps > 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(f"warmup_steps is a whole number of steps or a share below 1, found {self.warmup_steps:g}")
        check_arguments(self.lr_scheduler_type, self.lr_scheduler_kwargs)
        return self

    @model_validator(mode="after")
    def _no_setting_is_ignored(self) -> TrainingSettings:
        if self.layout == "tree" and self.neftune_noise_alpha is not None:
            raise ValueError(
                "neftune_noise_alpha gives each row noise by its own length, and rows of layout: tree share tokens; "
                "use layout: packed, or leave it out"
            )
        betas = ("adam_beta1", "adam_beta2", "adam_epsilon")
        unread = betas if self.optim in WITHOUT_BETAS else betas[2:] if self.optim == "lion_32bit" else ()
        for name in unread:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no meaning under optim: {self.optim}")
        if not self.selects:
            for name in ("metric_for_best_model", "greater_is_better", "early_stopping_threshold"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} needs load_best_model_at_end: true or early_stopping_patience")
        elif self.eval_strategy == "no":
            name = "load_best_model_at_end" if self.load_best_model_at_end else "early_stopping_patience"
            raise ValueError(f"{name} has nothing to go by under eval_strategy: no")
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise ValueError("early_stopping_threshold needs early_stopping_patience")
        if self.greater_is_better and self.metric_for_best_model in LOWER_IS_BETTER:
            raise ValueError(f"greater_is_better: true contradicts metric_for_best_model: {self.metric_for_best_model}")
        if self.greater_is_better is False and self.metric_for_best_model in HIGHER_IS_BETTER:
            raise ValueError(
                f"greater_is_better: false contradicts metric_for_best_model: {self.metric_for_best_model}"
            )
        return self

    @property
    def wanted_layout(self) -> Literal["tree", "packed", "padded"]:
        """How rows are laid out where the model admits it."""
        if self.layout != "auto":
            return self.layout
        return "tree" if self.neftune_noise_alpha is None else "packed"

    @property
    def selects(self) -> bool:
        """Whether held-out rows decide which step's weights the run ends with."""
        return self.load_best_model_at_end or self.early_stopping_patience is not None

    @property
    def higher_is_better(self) -> bool:
        """Of the metric that selects a step; as transformers, false for what ends in loss unless it is said."""
        if self.greater_is_better is not None:
            return self.greater_is_better
        return not self.metric_for_best_model.endswith(LOWER_IS_BETTER)


class EvaluationSettings(Settings):
    """How base and tuned model are compared on held-out rows."""

    metrics: list[str] = Field(default_factory=list, description="the first decides the verdict; loss if none")
    compute_metrics: str | None = Field(
        default=None, description="my_module:function, called with (logits, labels) as transformers' Trainer calls it"
    )
    max_new_tokens: int = Field(default=256, ge=1, description="tokens of an answer at most")
    max_rows: int | None = Field(default=None, ge=1, description="rows judged at most; drawn by seed")
    batch_size: int = Field(default=16, ge=1, description="answers generated at a time")
    do_sample: bool = False
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0)
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="of the interval around the difference")
    resamples: int = Field(default=10_000, ge=100, description="of the paired bootstrap")
    samples: int = Field(default=5, ge=0, description="answers shown side by side")

    @field_validator("metrics", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _sampling_is_on(self) -> EvaluationSettings:
        for name in ("temperature", "top_p"):
            if name in self.model_fields_set and not self.do_sample and getattr(self, name) != 1.0:
                raise ValueError(f"{name} has no effect while do_sample is false: set do_sample: true or leave it out")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError("a metric is named twice")
        return self


class Recipe(Settings):
    """A whole run, as the recipe file states it."""

    model: ModelSettings
    data: DataSettings
    method: MethodSettings = Field(default_factory=LoraSettings)
    objective: ObjectiveSettings = Field(default_factory=SftSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    output_dir: str = Field(min_length=1, description="the run folder")

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_name(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("method", "objective", mode="before")
    @classmethod
    def _variant_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        sources = self.data.sources("train")
        if all(source.format == "text" for source in sources):
            refuse_answer_metrics(self.evaluation.metrics)
        if self.model.named_tokens and getattr(self.method, "init_lora_weights", True) == "eva":
            raise ValueError("init_lora_weights: eva and model.add_tokens do not go together in PEFT; use another one")
        held_out = self.data.eval is None or bool(self.data.eval)
        if not held_out and "eval_steps" in self.training.model_fields_set:
            raise ValueError("training.eval_steps has nothing to evaluate on: data.eval is 0")
        if not held_out and self.evaluation.metrics:
            raise ValueError("evaluation.metrics has nothing to judge: data.eval is 0")
        if not held_out and self.training.selects:
            name = "load_best_model_at_end" if self.training.load_best_model_at_end else "early_stopping_patience"
            raise ValueError(f"training.{name} has no row to go by: data.eval is 0")
        if self.model.named_tokens and isinstance(getattr(self.method, "trainable_token_indices", None), dict):
            raise ValueError("method.trainable_token_indices is a list where model.add_tokens adds rows of its own")
        refuse_foreign_metrics(self.evaluation.metrics, self.objective.name)
        metric, known = self.training.metric_for_best_model, METRICS_OF_LOGITS[self.objective.name]
        foreign = metric in (*TOKEN_METRICS, *PREFERENCE_METRICS) and metric not in known
        if foreign:
            raise ValueError(
                f"training.metric_for_best_model: {metric} has no meaning under objective: {self.objective.name}; "
                f"use {', '.join(known)}, or what a function under evaluation.compute_metrics gives"
            )
        if metric not in known and self.evaluation.compute_metrics is None:
            raise ValueError(
                f"training.metric_for_best_model: {metric} is not known at a validation, which makes no answers; there "
                f"are {', '.join(known)} and what a function under evaluation.compute_metrics gives"
            )
        return self

    @property
    def learning_rate(self) -> float:
        """The peak learning rate, `auto` resolved by method and objective."""
        rate = self.training.learning_rate
        return usual_rate(self.method.name, self.objective.name) if rate == "auto" else rate

    def with_values(self, **sections: Mapping[str, Any]) -> Recipe:
        """A copy with some resolved values, section by section: ``with_values(training={"threads": 2})``."""
        updates = {name: getattr(self, name).model_copy(update=dict(values)) for name, values in sections.items()}
        return self.model_copy(update=updates)


def usual_rate(method: str, objective: str) -> float:
    """The peak learning rate of a method under an objective, at 1B to 30B parameters."""
    return (LEARNING_RATES if objective == "sft" else PREFERENCE_RATES)[method]


METRICS_OF_LOGITS: dict[str, tuple[str, ...]] = {
    "sft": TOKEN_METRICS, "dpo": ("loss", *PREFERENCE_METRICS), "orpo": ("loss", *PREFERENCE_METRICS), "kto": ("loss",),
}  # fmt: skip


def refuse_foreign_metrics(metrics: list[str], objective: str) -> None:
    """Some metrics are of pairs of answers, some of supervised tokens. Raises ValueError for another objective's."""
    known = METRICS_OF_LOGITS[objective]
    refused = [name for name in metrics if name in (*TOKEN_METRICS, *PREFERENCE_METRICS) and name not in known]
    if refused:
        raise ValueError(
            f"evaluation.metrics: {', '.join(refused)} has no meaning under objective: {objective}; "
            f"use {', '.join(known)}, or a metric of answers such as exact_match"
        )


def refuse_answer_metrics(metrics: list[str]) -> None:
    """Raw text has no prompt and no answer, so only token metrics can be asked for. Raises ValueError."""
    refused = [name for name in metrics if name not in TOKEN_METRICS]
    if refused:
        raise ValueError(
            f"evaluation.metrics: {', '.join(refused)} compares answers, and raw text has none; "
            f"use {', '.join(TOKEN_METRICS)}"
        )
