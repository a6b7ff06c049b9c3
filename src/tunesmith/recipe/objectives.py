"""Settings of the objectives: one class each, selected by ``name``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator

from tunesmith.recipe.row_shape import RowShape
from tunesmith.recipe.section import Settings, variant_name


class SftSettings(Settings):
    """Supervised fine-tuning: raises the likelihood of the tokens of the answers."""

    name: Literal["sft"] = "sft"


class DpoSettings(Settings):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290); names and meaning are TRL's."""

    name: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0, description="cost of moving away from the untuned model; tau under ipo")
    loss_type: Literal["sigmoid", "robust", "hinge", "ipo"] = Field(
        default="sigmoid",
        description="loss of the difference of log-ratios; robust: arXiv:2403.00409, ipo: arXiv:2310.12036",
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
    beta: float = Field(default=0.1, gt=0, description="weight of the odds ratio; lambda in the paper")
    nll_tokens: Literal["answer", "all"] = Field(
        default="answer",
        description="tokens of the chosen row to learn by likelihood; all: also the prompt, as in TRL",
    )


class KtoSettings(Settings):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306); names and meaning are TRL's."""

    name: Literal["kto"] = "kto"
    beta: float = Field(default=0.1, gt=0, description="cost of moving away from the untuned model")
    desirable_weight: float = Field(default=1.0, gt=0, description="weight of the loss of desirable answers")
    undesirable_weight: float = Field(default=1.0, gt=0, description="weight of the loss of undesirable answers")


ObjectiveSettings = Annotated[
    Annotated[SftSettings, Tag("sft")]
    | Annotated[DpoSettings, Tag("dpo")]
    | Annotated[OrpoSettings, Tag("orpo")]
    | Annotated[KtoSettings, Tag("kto")],
    variant_name("sft"),
]
OBJECTIVE_SETTINGS: dict[str, type[Settings]] = {
    "sft": SftSettings, "dpo": DpoSettings, "orpo": OrpoSettings, "kto": KtoSettings,
}  # fmt: skip
OBJECTIVE_SHAPES: dict[str, RowShape] = {"dpo": "preference", "orpo": "preference", "kto": "unpaired_preference"}
