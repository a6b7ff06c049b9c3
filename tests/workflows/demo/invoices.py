"""Makes the demo's rows: invoice headers written in twelve locales, with the JSON that each one becomes.

The rows are in the package (``src/tunesmith/workflows/demo/*.jsonl``). ``python -m tests.workflows.demo.invoices``
writes them again; a test holds the files to what this module makes.

Twelve locales of five languages: few enough that a small model can learn every month's name from a thousand rows.
Dates, month names, numbers and currencies are written by Babel from the Unicode CLDR, so a German header says
``1.249,00 €``, a Swiss one ``CHF 1’249.00`` and a French one ``1 249,00 €`` with the narrow no-break space that
belongs there. The phrasings around them are ours: see :data:`PHRASINGS`. What makes a row's truth certain:

- ``number`` is copied as it is written.
- ``date`` is ISO 8601. A header has a numeric date, day first (04/03/2024, 04.03.2024), or names the month; English
  has two orders for numeric dates, so American headers name the month.
- ``amount`` is a string with a point and two decimals, ``"1249.00"``: a JSON number would drop the zeros, and money is
  no float. Only currencies with two decimals are used, so the last two digits are always the decimals.
- ``currency`` is the ISO 4217 code. A header shows either that code or the CLDR's symbol of the header's own locale,
  where ``$`` alone is always the US dollar and others are told apart (``CA$``, ``$CA``).

The text of a date and the text of an amount therefore determine the truth without the locale; a test checks this.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

from babel.dates import format_date, format_skeleton
from babel.numbers import format_currency, format_decimal

INSTRUCTION = (
    'Turn the invoice header into JSON with the keys "number" (as written), "date" (YYYY-MM-DD), "amount" (a string '
    'with two decimals, no thousands separator) and "currency" (ISO 4217 code). Answer with the JSON only.'
)
TRAIN_ROWS, HELD_OUT_ROWS, SEED = 540, 100, 0  # of the rows in the package
FIRST_DAY = date(2020, 1, 1)
DAYS = (date(2026, 12, 31) - FIRST_DAY).days + 1
FOREIGN = ("USD", "EUR", "GBP", "CAD", "CHF")
FOREIGN_SHARE = 0.3
ISO_CODE_SHARE = 0.25
NUMERIC_SHARE = 0.6
FIRST_NINE_SHARE = 0.3  # of training rows
NUMBER_SHAPES = (
    "{prefix}-{serial}",
    "{prefix}{serial}",
    "{year}-{serial}",
    "{serial}/{year}",
    "{prefix}/{serial}/{year}",
)


MONTH_FIRST = "en_US"  # its numeric dates would read as other days elsewhere, so it names the month

CURRENCIES = {
    "en_US": "USD",
    "de_DE": "EUR",
    "fr_FR": "EUR",
    "it_IT": "EUR",
    "es_ES": "EUR",
    "en_GB": "GBP",
    "de_AT": "EUR",
    "fr_CH": "CHF",
    "it_CH": "CHF",
    "es_EC": "USD",
    "en_IE": "EUR",
    "de_CH": "CHF",
}
"""The locales, and the currency that most headers of each are in."""


@dataclass(frozen=True, slots=True)
class Phrasing:
    """How one language writes an invoice header.

    ``training`` and ``held_out`` are templates over ``{number}``, ``{date}`` and ``{amount}``. No line of a held-out
    template occurs in a training template of any language.
    """

    prefixes: tuple[str, ...]
    training: tuple[str, ...]
    held_out: tuple[str, ...]


PHRASINGS: dict[str, Phrasing] = {
    "en": Phrasing(
        ("INV", "SI", "B"),
        training=(
            "Invoice {number}\nDate: {date}\nTotal: {amount}",
            "INVOICE NO. {number}\nInvoice date {date}\nAmount due {amount}",
            "Invoice # {number} dated {date}\nBalance due: {amount}",
            "{date}\nInvoice number: {number}\nPlease pay {amount}",
            "Bill {number}, issued {date}\nTotal amount: {amount}",
            "Amount owing: {amount}\nInvoice ref {number}\nRaised on {date}",
            "Tax invoice {number}\nTax point: {date}\nTotal payable: {amount}",
            "Total inc. VAT: {amount}\nSales invoice {number} of {date}",
            "{date} - invoice {number}\nTo pay: {amount}",
            "On {date} we issued invoice {number} for {amount}",
        ),
        held_out=(
            "Your invoice {number} from {date}\nKindly remit {amount}",
            "Billed on {date}, ref. {number}\nSum payable: {amount}",
            "We are charging you {amount}\nStatement {number}, prepared {date}",
            "Document {number}\nMade out on {date}\nBalance outstanding: {amount}",
        ),
    ),
    "de": Phrasing(
        ("RE", "R", "AR"),
        training=(
            "Rechnung {number}\nDatum: {date}\nGesamtbetrag: {amount}",
            "Rechnung Nr. {number} vom {date}\nZu zahlen: {amount}",
            "Rechnungsnummer: {number}\nRechnungsdatum: {date}\nRechnungsbetrag: {amount}",
            "Datum {date}\nRechnungs-Nr. {number}\nSumme {amount}",
            "Endbetrag: {amount}\nRechnung {number} vom {date}",
            "RECHNUNG {number}\nausgestellt am {date}\nBetrag: {amount}",
            "Faktura {number}, {date}\nFälliger Betrag: {amount}",
            "Zahlbetrag {amount}\nRe.-Nr.: {number}\nDatum der Rechnung: {date}",
            "Rechnung {number} - {date}\nRechnungssumme: {amount}",
            "Wir haben am {date} die Rechnung {number} über {amount} gestellt",
        ),
        held_out=(
            "Unsere Rechnung {number}, erstellt am {date}\nBitte überweisen Sie {amount}",
            "Beleg-Nr. {number}, {date}\nNoch offen: {amount}",
            "Wir berechnen Ihnen {amount}\nBelegnummer {number}, Belegdatum {date}",
            "Am {date} stellen wir unter {number}\nfolgende Summe in Rechnung: {amount}",
        ),
    ),
    "fr": Phrasing(
        ("FA", "F", "FC"),
        training=(
            "Facture {number}\nDate : {date}\nTotal : {amount}",
            "Facture n° {number} du {date}\nNet à payer : {amount}",
            "Numéro de facture : {number}\nDate de facture : {date}\nMontant total : {amount}",
            "Le {date}\nFacture no {number}\nTotal TTC : {amount}",
            "Montant dû : {amount}\nFacture : {number}\nDate d'émission : {date}",
            "FACTURE {number}\nÉmise le {date}\nMontant TTC {amount}",
            "Solde dû : {amount}\nFacture {number}, {date}",
            "Date de facturation {date}\nN° {number}\nTotal à payer {amount}",
            "Facture {number} - {date}\nÀ payer : {amount}",
            "Le {date}, nous avons émis la facture {number} de {amount}",
        ),
        held_out=(
            "Votre facture {number}, établie le {date}\nSomme à régler : {amount}",
            "Pièce n° {number} - {date}\nReste à payer : {amount}",
            "Veuillez verser {amount}\nRéf. facture {number}, datée du {date}",
            "Nous vous facturons {amount}\nen date du {date}, référence {number}",
        ),
    ),
    "it": Phrasing(
        ("FT", "FE", "V"),
        training=(
            "Fattura {number}\nData: {date}\nTotale: {amount}",
            "Fattura n. {number} in data {date}\nTotale da pagare: {amount}",
            "Numero fattura: {number}\nData fattura: {date}\nImporto totale: {amount}",
            "Data {date}\nFattura numero {number}\nImporto dovuto {amount}",
            "Netto a pagare: {amount}\nFattura: {number}\nEmissione: {date}",
            "FATTURA {number}\nData di emissione: {date}\nTotale fattura: {amount}",
            "Fattura {number} del {date}\nSaldo dovuto: {amount}",
            "Importo {amount}\nFatt. n. {number}\nemessa il {date}",
            "Fattura {number} - {date}\nDa pagare: {amount}",
            "In data {date} abbiamo emesso la fattura {number} di {amount}",
        ),
        held_out=(
            "La Sua fattura {number}, datata {date}\nDa versare: {amount}",
            "Documento n. {number} - {date}\nSomma dovuta: {amount}",
            "Vi addebitiamo {amount}\nRif. fattura {number}, redatta in data {date}",
            "Il {date} Le abbiamo intestato la fattura {number}\nResta da saldare: {amount}",
        ),
    ),
    "es": Phrasing(
        ("FAC", "F", "A"),
        training=(
            "Factura {number}\nFecha: {date}\nTotal: {amount}",
            "Factura n.º {number}\nFecha de emisión: {date}\nTotal a pagar: {amount}",
            "Número de factura: {number}\nFecha de factura: {date}\nImporte total: {amount}",
            "Factura núm. {number} de fecha {date}\nImporte: {amount}",
            "Importe a pagar: {amount}\nFactura: {number}\nEmitida: {date}",
            "FACTURA {number}\nFecha {date}\nTOTAL {amount}",
            "Factura {number} del {date}\nSaldo pendiente: {amount}",
            "Valor total {amount}\nNo. de factura {number}\n{date}",
            "Factura {number} - {date}\nA pagar: {amount}",
            "El {date} hemos emitido la factura {number} por {amount}",
        ),
        held_out=(
            "Su factura {number}, emitida el {date}\nDebe abonar: {amount}",
            "Documento {number} del día {date}\nSuma final: {amount}",
            "Le cobramos {amount}\nReferencia {number}, expedida el {date}",
            "Con fecha {date} le facturamos, bajo el n.º {number},\nla suma de {amount}",
        ),
    ),
}
"""By language, as the locales of a language share their phrasings."""


def rows(count: int, *, seed: int, held_out: bool) -> list[dict[str, str]]:
    """``count`` rows ``{"instruction", "input", "output"}``, all with different inputs.

    The locales take turns, and so do each locale's templates. The same arguments give the same rows for one version of
    Babel, and training and held-out rows are drawn from two different random streams.

    Args:
        count: how many rows.
        seed: what the random streams start from.
        held_out: use the phrasings that training never sees.
    """
    rng = random.Random(f"invoices/{seed}/{'held-out' if held_out else 'training'}")
    turns = _turns(held_out)
    seen: set[str] = set()
    made: list[dict[str, str]] = []
    while len(made) < count:
        locale, template = next(turns)
        row = _row(locale, template, rng, first_nine=0.0 if held_out else FIRST_NINE_SHARE)
        if row["input"] not in seen:
            seen.add(row["input"])
            made.append(row)
    return made


def write(folder: Path, *, train: int, held_out: int, seed: int) -> tuple[Path, Path]:
    """Write ``train.jsonl`` and ``test.jsonl`` into ``folder`` (made if need be) and return their paths.

    Args:
        folder: where the two files go; what is there under these names is replaced.
        train: how many training rows.
        held_out: how many held-out rows.
        seed: as for :func:`rows`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "test.jsonl"
    for path, count, unseen in zip(paths, (train, held_out), (False, True), strict=True):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(count, seed=seed, held_out=unseen)]
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return paths


def phrasing_of(locale: str) -> Phrasing:
    """The phrasings of the locale's language."""
    return PHRASINGS[locale.partition("_")[0]]


def _turns(held_out: bool) -> Iterator[tuple[str, str]]:
    """Locale and template of each row in turn, for ever."""
    turn = 0
    while True:
        for locale in CURRENCIES:
            templates = phrasing_of(locale).held_out if held_out else phrasing_of(locale).training
            yield locale, templates[turn % len(templates)]
        turn += 1


def _row(locale: str, template: str, rng: random.Random, *, first_nine: float) -> dict[str, str]:
    day = _day(rng, first_nine)
    number = _number(phrasing_of(locale).prefixes, day.year, rng)
    amount = _amount(rng)
    currency = rng.choice(FOREIGN) if rng.random() < FOREIGN_SHARE else CURRENCIES[locale]
    header = template.format(
        number=number,
        date=date_text(day, locale=locale, numeric=rng.random() < NUMERIC_SHARE and locale != MONTH_FIRST),
        amount=amount_text(amount, currency, locale=locale, iso_code=rng.random() < ISO_CODE_SHARE),
    )
    truth = {"number": number, "date": day.isoformat(), "amount": str(amount), "currency": currency}
    return {"instruction": INSTRUCTION, "input": header, "output": json.dumps(truth, separators=(",", ":"))}


def _day(rng: random.Random, first_nine: float) -> date:
    """Any day of the years. Training sees more of a month's first nine: a day of one digit is harder to copy."""
    day = FIRST_DAY + timedelta(days=rng.randrange(DAYS))
    return day.replace(day=rng.randint(1, 9)) if rng.random() < first_nine else day


def date_text(day: date, *, locale: str, numeric: bool) -> str:
    """``day`` as the CLDR's numeric date with a year of four digits, or with the month's full name."""
    return format_skeleton("yMMdd", day, locale=locale) if numeric else format_date(day, format="long", locale=locale)


def amount_text(amount: Decimal, currency: str, *, locale: str, iso_code: bool) -> str:
    """``amount`` with the locale's separators, and with the ISO code before it or as the locale writes the currency."""
    if iso_code:
        return f"{currency} {format_decimal(amount, format='#,##0.00', locale=locale)}"
    return format_currency(amount, currency, locale=locale)


def _number(prefixes: tuple[str, ...], year: int, rng: random.Random) -> str:
    serial = str(rng.randrange(1, 10**4)).zfill(rng.choice((3, 4)))
    return rng.choice(NUMBER_SHAPES).format(prefix=rng.choice(prefixes), serial=serial, year=year)


def _amount(rng: random.Random) -> Decimal:
    """Between 5.00 and 99,999.99, small ones as likely as large ones, every third without cents."""
    units = int(5 * 20_000 ** rng.random())
    cents = 0 if rng.random() < 1 / 3 else rng.randrange(100)
    return Decimal(min(units, 99_999) * 100 + cents).scaleb(-2)


if __name__ == "__main__":
    folder = Path(__file__).parents[3] / "src" / "tunesmith" / "workflows" / "demo"
    write(folder, train=TRAIN_ROWS, held_out=HELD_OUT_ROWS, seed=SEED)
