"""Settings of the data section: sources, splits, cleaning, and the rules that turn rows into tokens."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    StringConstraints,
    field_validator,
    model_serializer,
    model_validator,
)

from tunesmith.recipe.paths import shown
from tunesmith.recipe.row_shape import READING, RowShape
from tunesmith.recipe.section import Settings, UserPath

SampleBy = Literal["auto", "line", "paragraph", "document"]  # datasets' name, and its values but for auto
PersonalData = Literal["email", "phone", "iban", "card", "secret"]
PERSONAL_DATA: tuple[str, ...] = get_args(PersonalData)


Delimiter = Annotated[
    str,
    BeforeValidator(lambda value: "\t" if value in ("tab", "\\t") else value),
    StringConstraints(min_length=1, max_length=1),
]

HeaderLines = bool | Annotated[int, Field(ge=2, le=9)]  # whether there is a header, or the number of its lines


class SourceSettings(Settings):
    """One file, folder, dataset or URL of rows.

    The query of a URL, which may hold a secret, is in ``address`` alone: it is neither shown nor stored.
    """

    path: UserPath = Field(min_length=1, description="file, folder, hub id user/name[@revision], or fsspec URL")
    weight: float = Field(
        default=1.0, gt=0, le=100, description="how often an epoch uses each row; fractions are drawn by seed"
    )
    rows: int | None = Field(
        default=None, ge=1, description="rows of this source in an epoch, drawn by seed, instead of weight"
    )
    format: RowShape = Field(default="auto", description="format of the rows; auto detects it from the columns")
    name: str | None = Field(default=None, description="configuration of a hub dataset")
    split: str | None = Field(default=None, description="split of a dataset")
    columns: dict[str, str] = Field(default_factory=dict, description="for each field, the column that holds it")
    instruction: str | None = Field(default=None, description="one instruction for all rows")
    sample_by: SampleBy = Field(
        default="auto", description="what a document of a text file is; auto: a line of .txt, else the whole file"
    )
    delimiter: Delimiter | None = Field(
        default=None, description="what separates the fields of a table, such as ; or tab; found by default"
    )
    encoding: str | None = Field(default=None, description="encoding of the files, such as cp1252; found by default")
    header: HeaderLines | None = Field(
        default=None,
        description="false: a table has no header, and its columns are column1, column2, ...; "
        "2: its header has two lines, of which the first names the columns",
    )
    key: str | None = Field(default=None, description="the key of a .json file that holds the rows, such as data")
    sheet: str | None = Field(default=None, description="the sheet of a spreadsheet that holds the rows")

    _address: str | None = PrivateAttr(default=None)

    @property
    def address(self) -> str:
        """Where the rows are read from: the path, of a URL with its query."""
        return self._address or self.path

    @model_validator(mode="wrap")
    @classmethod
    def _secrets_apart(cls, value: Any, handler: ModelWrapValidatorHandler[SourceSettings]) -> SourceSettings:
        path = value.get("path") if isinstance(value, Mapping) else None
        if not isinstance(path, str) or shown(path) == path:
            return handler(value)
        made = handler({**value, "path": shown(path)})
        made._address = path
        return made

    @model_serializer(mode="wrap")
    def _secrets_on_demand(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values = handler(self)
        if self._address is not None and "path" in values and (info.context or {}).get("addresses"):
            values["path"] = self._address
        return values

    def with_address_of(self, others: Iterable[SourceSettings]) -> SourceSettings:
        """The same source with the address that one of the others has for its path."""
        known = next((other for other in others if other.path == self.path), None)
        if known is None or known._address is None:
            return self
        made = self.model_copy()
        made._address = known._address
        return made

    @model_validator(mode="after")
    def _weight_or_rows(self) -> SourceSettings:
        if self.rows is not None and "weight" in self.model_fields_set:
            raise ValueError("rows and weight say the same thing: give one of them")
        return self


class CleanSettings(Settings):
    """What to remove from the training rows. By default nothing is removed."""

    dedupe: bool = Field(default=False, description="remove repeats of a row; the first is kept")
    near_dedupe: bool | float = Field(
        default=False, description="remove near duplicates; the first is kept; a number sets the similarity"
    )
    drop_leaked: bool = Field(
        default=False, description="remove rows whose prompt is held out; with near_dedupe also their near duplicates"
    )
    mask_pii: bool | list[PersonalData] = Field(
        default=False, description="replace personal data by its kind: all kinds, or a list of them"
    )
    balance: int | None = Field(default=None, ge=1, description="limit on the rows of one answer, drawn by seed")
    max_length: bool = Field(default=False, description="remove rows longer than data.max_length")

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
    """The rows, their format, and the rules that turn them into tokens."""

    train: list[SourceSettings] = Field(min_length=1, description="what to train on")
    eval: float | list[SourceSettings] | None = Field(
        default=None,
        description="a share held out by prompt hash, or sources; default: the dataset's own test split, else 0.1",
    )
    test: float | list[SourceSettings] | None = Field(
        default=None,
        description="a share or sources that training never uses; they judge if data.eval selects the step",
    )
    group: str | None = Field(
        default=None, description="rows with the same value of this column, instead of the same prompt, go to one split"
    )
    stratify: bool = Field(default=False, description="hold out the same share of each answer")
    clean: CleanSettings = Field(default_factory=CleanSettings, description="what to remove before training")
    max_lost: float | None = Field(default=None, ge=0, lt=1, description="stop if a larger share of all rows is lost")
    format: RowShape = Field(default="auto", description="default for every source")
    name: str | None = Field(default=None, description="default for every source")
    split: str | None = Field(default=None, description="default for the training sources")
    columns: dict[str, str] = Field(default_factory=dict, description="default for every source")
    instruction: str | None = Field(default=None, description="default for every source")
    sample_by: SampleBy = Field(default="auto", description="default for every source; needs files of text")
    delimiter: Delimiter | None = Field(default=None, description="default for every source")
    encoding: str | None = Field(default=None, description="default for every source")
    header: HeaderLines | None = Field(default=None, description="default for every source")
    key: str | None = Field(default=None, description="default for every source")
    sheet: str | None = Field(default=None, description="default for every source")
    max_length: int = Field(default=2048, ge=8, description="limit on the tokens of a row, prompt and answer together")
    too_long: Literal["auto", "error", "split", "drop", "truncate"] = Field(
        default="auto",
        description="what to do with longer rows; auto: raw text is split into blocks, a conversation is an error",
    )
    on_error: Literal["stop", "skip"] = Field(default="stop", description="skip: write bad rows to rejected.jsonl")
    control_tokens: Literal["error", "text"] = Field(
        default="error", description="control tokens in the text of a message"
    )
    chat_template: str | None = Field(
        default=None, description="Jinja text, a file or chatml_tools, instead of the model's template"
    )
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="such as enable_thinking: false")
    date: str | None = Field(default=None, pattern=r"^\d{4}-\d\d-\d\d$", description="the date that a template prints")
    train_on: Literal["assistant", "last"] = Field(
        default="assistant", description="all assistant turns, or only the last"
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
            datetime.date.fromisoformat(value)  # raises a message that says what is wrong
        return value

    @model_validator(mode="after")
    def _splits_agree(self) -> DataSettings:
        shares = [share for share in (self.eval, self.test) if isinstance(share, float)]
        if sum(shares) >= 1:
            raise ValueError("data.eval and data.test leave no row to train on")
        if self.stratify and self.group is not None:
            raise ValueError("stratify and group cannot both choose the split of a row: give one of them")
        if self.clean.max_length and self.too_long == "truncate":
            raise ValueError("clean.max_length removes long rows and too_long: truncate cuts them: give one of them")
        return self

    def if_too_long(self, *, raw_text: bool) -> Literal["error", "split", "drop", "truncate"]:
        """What to do with a row of more than ``max_length`` tokens; only raw text is split."""
        if raw_text and self.too_long == "split":
            return "split"
        if self.clean.max_length:
            return "drop"
        if self.too_long in ("auto", "split"):
            return "split" if raw_text else "error"
        return self.too_long

    def sources(self, which: Literal["train", "eval", "test"]) -> list[SourceSettings]:
        """The sources of a split, with the defaults of the section filled in; none for a share."""
        own = getattr(self, which)
        if not isinstance(own, list):
            return []
        shared = ["format", "name", "columns", "instruction", "sample_by", *READING]
        shared += ["split"] if which == "train" else []
        return [_fill(source, {name: getattr(self, name) for name in shared}) for source in own]


def _as_sources(value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


def _fill(source: SourceSettings, defaults: Mapping[str, Any]) -> SourceSettings:
    return source.model_copy(
        update={key: value for key, value in defaults.items() if key not in source.model_fields_set}
    )
