"""The demo's rows: invoice headers written in twelve locales, turned into JSON.

Dates, month names, numbers and currencies are written by Babel from the Unicode CLDR, so a German header says
``1.249,00 €`` and a French one ``1 249,00 €`` with the narrow no-break space that belongs there. The phrasings
around them are ours: see :data:`PHRASINGS`. What makes a row's truth certain:

- ``number`` is copied as it is written.
- ``date`` is ISO 8601. Numeric dates are day first in every locale that uses them here, and ISO in Swedish. English has
  two orders, 3/4/24 and 04/03/2024, so English headers name the month. Years lie in 2020-2026, so ``24`` is 2024.
- ``amount`` is a string with a point and two decimals, ``"1249.00"``: a JSON number would drop the zeros, and money is
  no float. Only currencies with two decimals are used, so the last two digits are always the decimals.
- ``currency`` is the ISO 4217 code. A header shows either that code or the CLDR's symbol of the header's own locale,
  where ``$`` alone is always the US dollar and others are told apart (``CA$``); ``kr`` is Swedish and ``kr.`` Danish.

A date's text and an amount's text therefore decide their truths without any look at the locale; a test holds this.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

from babel.dates import format_date
from babel.numbers import format_currency, format_decimal

INSTRUCTION = (
    'Turn the invoice header into JSON with the keys "number" (as written), "date" (YYYY-MM-DD), "amount" (a string '
    'with two decimals, no thousands separator) and "currency" (ISO 4217 code). Answer with the JSON only.'
)
FIRST_DAY = date(2020, 1, 1)
DAYS = (date(2026, 12, 31) - FIRST_DAY).days + 1
FOREIGN = ("USD", "EUR", "GBP", "CAD", "CHF")
FOREIGN_SHARE = 0.3
ISO_CODE_SHARE = 0.25
NUMBER_SHAPES = (
    "{prefix}-{serial}",
    "{prefix}{serial}",
    "{year}-{serial}",
    "{serial}/{year}",
    "{prefix}/{serial}/{year}",
)


@dataclass(frozen=True, slots=True)
class Phrasing:
    """How one locale writes an invoice header.

    ``training`` and ``held_out`` are templates over ``{number}``, ``{date}`` and ``{amount}``. No line of a held-out
    template occurs in a training template of any locale, and no template puts a full stop after ``{amount}``, which
    would turn ``kr`` into ``kr.``.
    """

    currency: str
    prefixes: tuple[str, ...]
    training: tuple[str, ...]
    held_out: tuple[str, ...]


DATE_STYLES = ("medium", "long")  # years of four digits; medium is numeric in some locales, in words in others

PHRASINGS: dict[str, Phrasing] = {
    "de_DE": Phrasing(
        "EUR",
        ("RE", "R", "AR"),
        training=(
            "Rechnung {number}\nDatum: {date}\nGesamtbetrag: {amount}",
            "Rechnung Nr. {number} vom {date}\nZu zahlen: {amount}",
            "Rechnungsnummer: {number}\nRechnungsdatum: {date}\nRechnungsbetrag: {amount}",
            "Datum {date}\nRechnungs-Nr. {number}\nSumme {amount}",
            "Endbetrag: {amount}\nRechnung {number} vom {date}",
            "RECHNUNG {number}\nausgestellt am {date}\nBetrag: {amount}",
        ),
        held_out=(
            "Unsere Rechnung {number}, erstellt am {date}\nBitte überweisen Sie {amount}",
            "Beleg-Nr. {number}, {date}\nNoch offen: {amount}",
            "Wir berechnen Ihnen {amount}\nBelegnummer {number}, Belegdatum {date}",
        ),
    ),
    "en_US": Phrasing(
        "USD",
        ("INV", "IN", "B"),
        training=(
            "Invoice {number}\nDate: {date}\nTotal: {amount}",
            "INVOICE NO. {number}\nInvoice date {date}\nAmount due {amount}",
            "Invoice # {number} dated {date}\nBalance due: {amount}",
            "{date}\nInvoice number: {number}\nPlease pay {amount}",
            "Bill {number}, issued {date}\nTotal amount: {amount}",
            "Amount due: {amount}\nInvoice: {number}\nIssued: {date}",
        ),
        held_out=(
            "Your invoice {number} from {date}\nKindly remit {amount}",
            "Billed on {date}, ref. {number}\nSum payable: {amount}",
            "We are charging you {amount}\nStatement {number}, prepared {date}",
        ),
    ),
    "pl_PL": Phrasing(
        "PLN",
        ("FV", "FS", "F"),
        training=(
            "Faktura {number}\nData: {date}\nRazem: {amount}",
            "Faktura nr {number} z dnia {date}\nDo zapłaty: {amount}",
            "Numer faktury: {number}\nData wystawienia: {date}\nKwota: {amount}",
            "Data {date}\nFaktura VAT {number}\nSuma {amount}",
            "Razem do zapłaty: {amount}\nFaktura: {number}\nWystawiono {date}",
            "FAKTURA {number}\nwystawiona {date}\nWartość brutto: {amount}",
        ),
        held_out=(
            "Państwa faktura {number}, sporządzona {date}\nProsimy o wpłatę {amount}",
            "Dokument nr {number} - {date}\nNależność: {amount}",
            "Do uregulowania {amount}\nRachunek {number}, dnia {date}",
        ),
    ),
    "fr_FR": Phrasing(
        "EUR",
        ("FA", "F", "FC"),
        training=(
            "Facture {number}\nDate : {date}\nTotal : {amount}",
            "Facture n° {number} du {date}\nNet à payer : {amount}",
            "Numéro de facture : {number}\nDate de facture : {date}\nMontant total : {amount}",
            "Le {date}\nFacture no {number}\nTotal TTC : {amount}",
            "Montant dû : {amount}\nFacture : {number}\nDate d'émission : {date}",
            "FACTURE {number}\nÉmise le {date}\nMontant TTC {amount}",
        ),
        held_out=(
            "Votre facture {number}, établie le {date}\nSomme à régler : {amount}",
            "Pièce n° {number} - {date}\nReste à payer : {amount}",
            "Veuillez verser {amount}\nRéf. facture {number}, datée du {date}",
        ),
    ),
    "pt_BR": Phrasing(
        "BRL",
        ("NF", "FT", "F"),
        training=(
            "Fatura {number}\nData: {date}\nTotal: {amount}",
            "Fatura nº {number} de {date}\nTotal a pagar: {amount}",
            "Número da fatura: {number}\nData de emissão: {date}\nValor total: {amount}",
            "Nota fiscal {number}\nEmitida em {date}\nValor: {amount}",
            "Valor a pagar: {amount}\nFatura: {number}\nData da fatura: {date}",
            "NOTA FISCAL Nº {number}\nEmissão: {date}\nVALOR TOTAL {amount}",
        ),
        held_out=(
            "Sua fatura {number}, gerada em {date}\nPague o valor de {amount}",
            "Documento nº {number} com data de {date}\nSaldo devedor: {amount}",
            "Cobramos {amount}\nRef. {number}, lançada em {date}",
        ),
    ),
    "sv_SE": Phrasing(
        "SEK",
        ("F", "FA", "KF"),
        training=(
            "Faktura {number}\nDatum: {date}\nTotalt: {amount}",
            "Fakturanummer: {number}\nFakturadatum: {date}\nAtt betala: {amount}",
            "Faktura nr {number} av den {date}\nBelopp: {amount}",
            "Datum {date}\nFakturanr {number}\nSumma {amount}",
            "Belopp att betala: {amount}\nFaktura: {number}\nUtfärdad {date}",
            "FAKTURA {number}\nFakturadatum {date}\nSumma att betala {amount}",
        ),
        held_out=(
            "Er faktura {number}, daterad {date}\nVänligen betala {amount}",
            "Verifikat {number}\nUtställd den {date}\nSlutsumma: {amount}",
            "Vi debiterar {amount}\nReferens {number}, skickad {date}",
        ),
    ),
    "en_GB": Phrasing(
        "GBP",
        ("SI", "INV", "GB"),
        training=(
            "Tax invoice {number}\nTax point: {date}\nTotal payable: {amount}",
            "Invoice no: {number}\nDate of issue: {date}\nTotal inc. VAT: {amount}",
            "Sales invoice {number} of {date}\nTo pay: {amount}",
            "Invoice ref {number}\nRaised on {date}\nAmount owing: {amount}",
            "Total due {amount}\nInvoice {number}\n{date}",
            "Invoice date: {date}\nOur ref: {number}\nGross total: {amount}",
        ),
        held_out=(
            "VAT invoice {number}, dated {date}\nNow payable: {amount}",
            "Document {number}\nMade out on {date}\nBalance outstanding: {amount}",
            "Please settle {amount}\nBill ref. {number}, sent {date}",
        ),
    ),
    "it_IT": Phrasing(
        "EUR",
        ("FT", "FE", "V"),
        training=(
            "Fattura {number}\nData: {date}\nTotale: {amount}",
            "Fattura n. {number} in data {date}\nTotale da pagare: {amount}",
            "Numero fattura: {number}\nData fattura: {date}\nImporto totale: {amount}",
            "Data {date}\nFattura numero {number}\nImporto dovuto {amount}",
            "Netto a pagare: {amount}\nFattura: {number}\nEmissione: {date}",
            "FATTURA {number}\nData di emissione: {date}\nTotale fattura: {amount}",
        ),
        held_out=(
            "La Sua fattura {number}, datata {date}\nDa versare: {amount}",
            "Documento n. {number} - {date}\nSomma dovuta: {amount}",
            "Vi addebitiamo {amount}\nRif. fattura {number}, redatta in data {date}",
        ),
    ),
    "cs_CZ": Phrasing(
        "CZK",
        ("FV", "VF", "FA"),
        training=(
            "Faktura {number}\nDatum: {date}\nCelkem: {amount}",
            "Faktura č. {number} ze dne {date}\nK úhradě: {amount}",
            "Číslo faktury: {number}\nDatum vystavení: {date}\nČástka: {amount}",
            "Datum {date}\nFaktura číslo {number}\nSoučet {amount}",
            "Celkem k úhradě: {amount}\nFaktura: {number}\nVystaveno {date}",
            "FAKTURA {number}\nvystavena {date}\nCena celkem: {amount}",
        ),
        held_out=(
            "Vaše faktura {number}, vyhotovená {date}\nProsíme uhraďte {amount}",
            "Doklad č. {number} - {date}\nZbývá zaplatit: {amount}",
            "Účtujeme vám {amount}\nDaňový doklad {number} s datem {date}",
        ),
    ),
    "nl_NL": Phrasing(
        "EUR",
        ("F", "FN", "VF"),
        training=(
            "Factuur {number}\nDatum: {date}\nTotaal: {amount}",
            "Factuurnummer: {number}\nFactuurdatum: {date}\nTotaalbedrag: {amount}",
            "Factuur nr. {number} van {date}\nTe betalen: {amount}",
            "Datum {date}\nFactuurnr. {number}\nBedrag {amount}",
            "Te voldoen: {amount}\nFactuur: {number}\nFactuurdatum {date}",
            "FACTUUR {number}\nopgemaakt op {date}\nTotaal incl. btw {amount}",
        ),
        held_out=(
            "Uw rekening {number}, verzonden op {date}\nGraag overmaken: {amount}",
            "Nota {number} d.d. {date}\nOpenstaand saldo: {amount}",
            "Wij brengen u {amount} in rekening\nKenmerk {number}, gedateerd {date}",
        ),
    ),
    "es_ES": Phrasing(
        "EUR",
        ("FAC", "F", "A"),
        training=(
            "Factura {number}\nFecha: {date}\nTotal: {amount}",
            "Factura n.º {number}\nFecha de emisión: {date}\nTotal a pagar: {amount}",
            "Número de factura: {number}\nFecha de factura: {date}\nImporte total: {amount}",
            "Factura núm. {number} de fecha {date}\nImporte: {amount}",
            "Importe a pagar: {amount}\nFactura: {number}\nEmitida: {date}",
            "FACTURA {number}\nFecha {date}\nTOTAL {amount}",
        ),
        held_out=(
            "Su factura {number}, emitida el {date}\nDebe abonar: {amount}",
            "Documento {number} del día {date}\nSuma final: {amount}",
            "Le cobramos {amount}\nReferencia {number}, expedida el {date}",
        ),
    ),
    "da_DK": Phrasing(
        "DKK",
        ("F", "FN", "SF"),
        training=(
            "Faktura {number}\nDato: {date}\nI alt: {amount}",
            "Fakturanummer: {number}\nFakturadato: {date}\nAt betale: {amount}",
            "Faktura nr. {number} af {date}\nBeløb: {amount}",
            "Dato {date}\nFakturanr. {number}\nTotal {amount}",
            "Beløb til betaling: {amount}\nFaktura: {number}\nUdstedt {date}",
            "FAKTURA {number}\nFakturadato {date}\nTotalbeløb: {amount}",
        ),
        held_out=(
            "Deres regning {number}, dateret {date}\nVenligst betal {amount}",
            "Bilag {number}\nUdfærdiget den {date}\nSlutbeløb: {amount}",
            "Vi opkræver {amount}\nReference {number}, sendt {date}",
        ),
    ),
}


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
        row = _row(locale, template, rng)
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


def _turns(held_out: bool) -> Iterator[tuple[str, str]]:
    """Locale and template of each row in turn, for ever."""
    turn = 0
    while True:
        for locale, phrasing in PHRASINGS.items():
            templates = phrasing.held_out if held_out else phrasing.training
            yield locale, templates[turn % len(templates)]
        turn += 1


def _row(locale: str, template: str, rng: random.Random) -> dict[str, str]:
    phrasing = PHRASINGS[locale]
    day = FIRST_DAY + timedelta(days=rng.randrange(DAYS))
    number = _number(phrasing.prefixes, day.year, rng)
    amount = _amount(rng)
    currency = rng.choice(FOREIGN) if rng.random() < FOREIGN_SHARE else phrasing.currency
    header = template.format(
        number=number,
        date=date_text(day, style=rng.choice(DATE_STYLES), locale=locale),
        amount=amount_text(amount, currency, locale=locale, iso_code=rng.random() < ISO_CODE_SHARE),
    )
    truth = {"number": number, "date": day.isoformat(), "amount": str(amount), "currency": currency}
    return {"instruction": INSTRUCTION, "input": header, "output": json.dumps(truth, separators=(",", ":"))}


def date_text(day: date, *, style: str, locale: str) -> str:
    """``day`` in one of the CLDR's styles of ``locale``, such as ``"medium"`` or ``"long"``."""
    return format_date(day, format=style, locale=locale)


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
