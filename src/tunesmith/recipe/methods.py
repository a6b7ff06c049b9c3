"""Settings of the methods: one class each, selected by ``name``."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, field_validator, model_validator

from tunesmith.recipe.section import Settings, UserPath, variant_name

LORA_ROWS, FULL_ROWS = 1_000, 10_000  # rows from which a method pays (guide: 1K-10K for LoRA, 10K and more for full)


INITS = ("gaussian", "orthogonal", "pissa", "olora", "eva")
REWRITES_BASE = ("pissa", "olora")  # the adapter starts with a part of the base's weights, which is taken out of them
QUANTIZED = ("qlora", "lora-int8")  # labels of methods, see method_label
BESIDE = ("full", *QUANTIZED)  # compared with untuned weights that are loaded separately


class FullSettings(Settings):
    """Full fine-tuning: every parameter trains."""

    name: Literal["full"] = "full"


class FreezeSettings(Settings):
    """Fine-tuning of a part: the last decoder layers and the named modules train, all other weights stay the same."""

    name: Literal["freeze"] = "freeze"
    trainable_layers: int = Field(default=2, ge=0, description="number of last decoder layers that train")
    trainable_modules: str | list[str] | None = Field(
        default=None, description="what else trains: names of modules or weights, or a regular expression"
    )
    train_embeddings: bool = Field(default=False, description="also train the input embeddings and the head")

    @field_validator("trainable_modules", mode="after")
    @classmethod
    def _is_a_pattern(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{value!r} is not a regular expression ({error}); write names as a list") from None
        return value

    @model_validator(mode="after")
    def _something_trains(self) -> FreezeSettings:
        if not (self.trainable_layers or self.trainable_modules or self.train_embeddings):
            raise ValueError(
                "trainable_layers: 0 leaves nothing to train: name trainable_modules, or set train_embeddings: true"
            )
        return self


class EvaSettings(Settings):
    """Initialization by EVA (arXiv:2410.07170); every field is a field of peft.EvaConfig."""

    rho: float = Field(default=2.0, ge=1, description="the rank of a module is at most r * rho; 1: every rank stays r")
    tau: float = Field(
        default=0.99, ge=0, lt=1, description="a direction is settled when two steps agree to this cosine similarity"
    )
    use_label_mask: bool = Field(default=True, description="use supervised tokens only")
    label_mask_value: int = Field(default=-100, description="the mark of other tokens; no other value is allowed")
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
    """The settings that lora and qlora share; every field is one of peft.LoraConfig or of PEFT's LoRA+ optimizer."""

    task_type: Literal["CAUSAL_LM"] = Field(default="CAUSAL_LM", description="the task type for PEFT")

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
        description="how A and B start: true, false, gaussian, orthogonal, pissa (arXiv:2404.02948), pissa_niter_4 "
        "(the same by a fast, randomized SVD), olora (arXiv:2406.01775), eva (from the first rows, arXiv:2410.07170)",
    )
    eva_config: EvaSettings | None = Field(default=None, description="settings of eva; see peft.EvaConfig")
    modules_to_save: list[str] | None = Field(
        default=None, description="modules that train completely and are saved with the adapter"
    )
    layers_to_transform: int | list[int] | None = Field(
        default=None, description="indexes of the layers that get an adapter"
    )
    layers_pattern: str | list[str] | None = Field(default=None, description="name of the list of layers")
    rank_pattern: dict[str, int] = Field(default_factory=dict, description="another r for some modules, by name")
    alpha_pattern: dict[str, float] = Field(
        default_factory=dict, description="another lora_alpha for some modules, by name"
    )
    adapter_name_or_path: UserPath | None = Field(
        default=None, description="run, checkpoint or adapter folder to continue from; its own settings apply"
    )
    adapter_sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="hash of the weights of adapter_name_or_path"
    )
    loraplus_lr_ratio: float | None = Field(
        default=None,
        gt=0,
        description="LoRA+ (arXiv:2402.12354): learning rate of B, and of vectors that train, divided by that of A. "
        "The rate of A is training.learning_rate, which progress and metrics show; the paper advises 16",
    )
    loraplus_lr_embedding: float = Field(
        default=1e-6, gt=0, description="LoRA+: peak learning rate of the adapter of an embedding"
    )
    trainable_token_indices: list[int] | dict[str, list[int]] | None = Field(
        default=None, description="token ids whose rows of the embedding train; or the name of a table: ids"
    )

    @field_validator("init_lora_weights", mode="after")
    @classmethod
    def _known_initialization(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and value not in INITS and not re.fullmatch(r"pissa_niter_[1-9]\d*", value):
            names = ", ".join(INITS)
            raise ValueError(f"expected true, false, {names} or pissa_niter_4 (any number), found {value!r}")
        return value

    @field_validator("trainable_token_indices", mode="after")
    @classmethod
    def _ids_of_tokens(cls, value: Any) -> Any:
        for ids in value.values() if isinstance(value, dict) else [value] if value is not None else []:
            if not ids or min(ids) < 0 or len(set(ids)) < len(ids):
                raise ValueError(f"must name ids from 0 on, each once, found {ids}")
        return value

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> AdapterSettings:
        if self.eva_config is not None and self.init_lora_weights != "eva":
            raise ValueError("eva_config has no effect without init_lora_weights: eva")
        if self.init_lora_weights == "eva" and self.trainable_token_indices is not None:
            raise ValueError("PEFT cannot combine init_lora_weights: eva with trainable_token_indices")
        if self.loraplus_lr_ratio is None and self.differs("loraplus_lr_embedding"):
            raise ValueError("loraplus_lr_embedding has no effect without loraplus_lr_ratio")
        if self.adapter_name_or_path is None and self.adapter_sha256 is not None:
            raise ValueError("adapter_sha256 is of the weights of adapter_name_or_path: give that too")
        if self.adapter_name_or_path is not None:
            for name in ("init_lora_weights", "trainable_token_indices"):
                if self.differs(name):
                    raise ValueError(f"{name} has no effect with adapter_name_or_path, whose adapter is already there")
        return self

    @model_validator(mode="after")
    def _layers_can_be_chosen(self) -> AdapterSettings:
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise ValueError("layers_pattern says where layers_to_transform counts: give layers_to_transform too")
        pattern = isinstance(self.target_modules, str) and self.target_modules != "all-linear"
        if pattern and self.layers_to_transform is not None:
            raise ValueError("layers_to_transform needs target_modules as a list of names, or all-linear")
        return self

    @property
    def rewrites_base(self) -> bool:
        """Whether the adapter starts with a part of the base's weights."""
        return isinstance(self.init_lora_weights, str) and self.init_lora_weights.startswith(REWRITES_BASE)


class LoraSettings(AdapterSettings):
    """LoRA (Hu et al. 2021, arXiv:2106.09685) by PEFT."""

    name: Literal["lora"] = "lora"
    load_in_8bit: bool = Field(default=False, description="quantize the base to 8 bits, by bitsandbytes")
    llm_int8_threshold: float = Field(
        default=6.0, description="accepted for its default only: activations are never rounded to 8 bits here"
    )
    llm_int8_skip_modules: list[str] | None = Field(
        default=None, description="modules that stay unquantized, besides the output layer"
    )

    @model_validator(mode="after")
    def _eight_bits(self) -> LoraSettings:
        if self.load_in_8bit and (self.rewrites_base or self.init_lora_weights == "orthogonal"):
            raise ValueError(
                f"init_lora_weights: {self.init_lora_weights} does not work over 8-bit weights: use "
                "init_lora_weights: true, gaussian or eva, or leave load_in_8bit out"
            )
        for name in ("llm_int8_threshold", "llm_int8_skip_modules"):
            if name in self.model_fields_set and not self.load_in_8bit:
                raise ValueError(f"{name} has no effect without load_in_8bit: true")
        if self.llm_int8_threshold != 6.0:
            raise ValueError(
                "llm_int8_threshold has no effect, because activations are not rounded to 8 bits: leave it out"
            )
        return self


class QloraSettings(AdapterSettings):
    """QLoRA (Dettmers et al. 2023, arXiv:2305.14314): LoRA over a 4-bit base by bitsandbytes."""

    name: Literal["qlora"] = "qlora"
    load_in_4bit: bool = Field(default=True, description="always true for qlora")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field(default="nf4", description="4-bit data type")
    bnb_4bit_use_double_quant: bool = Field(default=True, description="quantize the quantization constants too")
    bnb_4bit_compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="dtype of matrix products; auto: float32 on a CPU, bfloat16 on a GPU that has it"
    )

    @field_validator("load_in_4bit", mode="after")
    @classmethod
    def _in_four_bits(cls, value: bool) -> bool:
        if not value:
            raise ValueError("qlora is LoRA over a 4-bit base; for an unquantized base use method: lora")
        return value

    @model_validator(mode="after")
    def _starts_as_the_base(self) -> QloraSettings:
        if self.rewrites_base:
            raise ValueError(
                f"init_lora_weights: {self.init_lora_weights} takes the adapter out of the base's weights. "
                "The rest would be rounded to 4 bits again, so step zero would not be the base: use method: lora, or "
                "init_lora_weights: eva"
            )
        if self.init_lora_weights == "orthogonal":
            raise ValueError(
                "init_lora_weights: orthogonal does not work over 4-bit weights: "
                "use init_lora_weights: true, gaussian or eva"
            )
        return self


MethodSettings = Annotated[
    Annotated[FullSettings, Tag("full")]
    | Annotated[FreezeSettings, Tag("freeze")]
    | Annotated[LoraSettings, Tag("lora")]
    | Annotated[QloraSettings, Tag("qlora")],
    variant_name("lora"),
]
METHOD_SETTINGS: dict[str, type[Settings]] = {
    "full": FullSettings,
    "freeze": FreezeSettings,
    "lora": LoraSettings,
    "qlora": QloraSettings,
}


def method_label(method: MethodSettings) -> str:
    """The name of the method, or ``lora-int8`` for LoRA over 8-bit weights, which needs other memory and time."""
    return "lora-int8" if getattr(method, "load_in_8bit", False) else method.name
