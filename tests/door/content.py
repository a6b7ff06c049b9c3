"""Rows for the files: invented customers of an invented shop, in the languages and with the characters people use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Ticket(NamedTuple):
    """A message to the shop and what it is about."""

    language: str
    subject: str
    body: str
    label: str
    amount: float


LABELS = ("billing", "delivery", "account", "praise")
LABELS_IN_GERMAN = {"billing": "Rechnung", "delivery": "Lieferung", "account": "Konto", "praise": "Lob"}

# The first has what breaks readers: a line break, a comma, a semicolon, straight and curly quotes, € and umlauts.
TICKETS = (
    Ticket(
        "de",
        "Rechnung 4711",
        'Guten Tag,\nauf der Rechnung stehen 12,50 € statt „10,00 €“; Ihr Kollege sagte "kein Problem".\nGrüße, Jörg',
        "billing",
        12.5,
    ),
    Ticket("en", "Parcel", "My parcel was due on Monday, and it's Thursday. Where is it?", "delivery", 0.0),
    Ticket("fr", "Mot de passe", "Je n’arrive plus à me connecter : mot de passe oublié.", "account", 0.0),
    Ticket("es", "¡Gracias!", "¡Qué rápido! Todo perfecto, volveré a comprar.", "praise", 1249.9),
    Ticket("it", "Fattura", "La fattura è sbagliata: ho pagato 30,00 € e non 35,00 €.", "billing", 35.0),
    Ticket("pt", "Encomenda", "A encomenda não chegou; o código é PT-88.", "delivery", 0.0),
    Ticket("nl", "Account", "Ik kan mijn e-mailadres niet wijzigen in mijn account.", "account", 0.0),
    Ticket("de", "Danke", "Super Beratung, schöne Verpackung. Weiter so!", "praise", 89.0),
    Ticket("en", "Charged twice", 'You charged me twice for the "large" box, please refund one.', "billing", 59.98),
    Ticket("fr", "Livraison", "Le colis est arrivé ouvert, et il manque la boîte bleue.", "delivery", 24.0),
    Ticket("es", "Mi cuenta", "Mi cuenta está bloqueada desde ayer.\n¿Qué hago?", "account", 0.0),
    Ticket("it", "Complimenti", "Ottimo servizio, tutto perfetto. Grazie mille!", "praise", 15.5),
    Ticket("pt", "Fatura", "Preciso da fatura de março com o NIF da empresa.", "billing", 110.0),
    Ticket("nl", "Levering", "De bezorger heeft het pakket bij de buren gelaten, maar wie?", "delivery", 0.0),
    Ticket("de", "Anmeldung", "Der Bestätigungscode für die Anmeldung kommt nicht an.", "account", 0.0),
    Ticket("en", "Lovely", "Lovely mugs, and the note by hand made my day.", "praise", 32.0),
    Ticket("de", "Mahnung", "Warum eine Mahnung? Ich habe am 3. bezahlt; Beleg anbei.", "billing", 7.5),
    Ticket("en", "Wrong street", "Please send it to 12 Mill Lane, not to 21.", "delivery", 0.0),
    Ticket("fr", "Supprimer", "Merci de supprimer mon compte et mes données.", "account", 0.0),
    Ticket("es", "Un detalle", "El papel de regalo es precioso, enhorabuena.", "praise", 8.25),
    Ticket("it", "Rimborso", "Aspetto il rimborso da due settimane, quando arriva?", "billing", 18.0),
    Ticket("pt", "Atraso", "Três semanas de atraso e nenhuma resposta.", "delivery", 0.0),
    Ticket("nl", "Wachtwoord", "De link voor een nieuw wachtwoord werkt niet meer.", "account", 0.0),
    Ticket("de", "Toll", "Der Tee schmeckt großartig, auch meiner Oma.", "praise", 12.0),
    Ticket("en", "VAT", "The invoice shows 20% VAT; our company is exempt.", "billing", 480.0),
    Ticket("fr", "Suivi", "Le numéro de suivi ne marche pas sur votre site.", "delivery", 0.0),
    Ticket("es", "Correo", "Quiero cambiar el correo de mi cuenta, ¿cómo?", "account", 0.0),
    Ticket("it", "Bellissimo", "Bellissima tazza, meglio che in foto.", "praise", 14.0),
    Ticket("de", "Skonto", "Auf der Rechnung fehlt das Skonto von 2 %.", "billing", 1310.4),
    Ticket("en", "Broken", "The teapot came broken. Photos attached.", "delivery", 45.0),
    Ticket("fr", "Nom", "J’ai changé de nom : comment corriger mon compte ?", "account", 0.0),
    Ticket("nl", "Bedankt", "Snel geleverd en mooi ingepakt, bedankt!", "praise", 21.0),
)

# The same shop further away; no western code page holds these.
WORLD_TICKETS = (
    Ticket("ja", "請求書", "請求書の金額が違います。3,500円ではなく3,000円のはずです。", "billing", 3500.0),
    Ticket("zh", "快递", "快递三天没有更新了,请帮我查一下。", "delivery", 0.0),
    Ticket("ru", "Вход", "Не могу войти: «неверный пароль».", "account", 0.0),
    Ticket("pl", "Dziękuję", "Świetna obsługa, herbata pyszna. Dziękuję! 🍵", "praise", 42.0),
    Ticket("ar", "فاتورة", "الفاتورة فيها خطأ، أرجو التصحيح.", "billing", 90.0),
    Ticket("tr", "Kargo", "Kargom hâlâ gelmedi, ne zaman ulaşır?", "delivery", 0.0),
    Ticket("ko", "로그인", "비밀번호를 바꿨는데 로그인이 안 돼요 😢", "account", 0.0),
    Ticket("en", "Thank you", "Best mug ever ☕🎉 – my cat agrees 🐈‍⬛", "praise", 16.0),
)
ALL_TICKETS = TICKETS + WORLD_TICKETS

CITIES = ("Berlin", "Lyon", "Porto", "Torino", "Utrecht", "Gdynia", "Kazan", "Kyoto")
HOURS = (8, 9, 10, 11, 7, 8, 9, 10)
PEOPLE = ("Ada", "Luc", "Rui", "Pia", "Jan", "Ewa", "Oleg", "Yuki")

# Per language: the columns' names, and three questions with answers. The first has quotes and a comma.
LANGUAGES: Mapping[str, tuple[tuple[str, str], tuple[tuple[str, str], ...]]] = {
    "english": (
        ("question", "answer"),
        (
            ('When does the shop "Teapot" in {city} open, please?', "At {hour} o'clock, every day."),
            ("Which bus goes to the shop in {city}?", "Bus {bus}."),
            ("Who runs the shop in {city}?", "{person} does."),
        ),
    ),
    "german": (
        ("Frage", "Antwort"),
        (
            ('Wann öffnet der Laden "Teekanne" in {city}, bitte?', "Um {hour} Uhr, täglich."),
            ("Welcher Bus fährt zum Laden in {city}?", "Der Bus {bus}."),
            ("Wer führt den Laden in {city}?", "Das macht {person}."),
        ),
    ),
    "french": (
        ("Question", "Réponse"),
        (
            ('À quelle heure ouvre la boutique "Théière" à {city}, merci ?', "À {hour} heures, tous les jours."),
            ("Quel bus va à la boutique de {city} ?", "Le bus {bus}."),
            ("Qui tient la boutique de {city} ?", "C’est {person}."),
        ),
    ),
    "spanish": (
        ("pregunta", "respuesta"),
        (
            ('¿Cuándo abre la tienda "Tetera" en {city}, por favor?', "A las {hour}, todos los días."),
            ("¿Qué autobús va a la tienda de {city}?", "El autobús {bus}."),
            ("¿Quién lleva la tienda de {city}?", "La lleva {person}."),
        ),
    ),
    "portuguese": (
        ("pergunta", "resposta"),
        (
            ('A que horas abre a loja "Bule" em {city}, por favor?', "Às {hour} horas, todos os dias."),
            ("Que autocarro vai para a loja em {city}?", "O autocarro {bus}."),
            ("Quem gere a loja em {city}?", "É {person} que a gere."),
        ),
    ),
    "italian": (
        ("domanda", "risposta"),
        (
            ('Quando apre il negozio "Teiera" a {city}, per favore?', "Alle {hour}, ogni giorno."),
            ("Quale autobus va al negozio di {city}?", "L’autobus {bus}."),
            ("Chi gestisce il negozio di {city}?", "Lo gestisce {person}."),
        ),
    ),
    "dutch": (
        ("vraag", "antwoord"),
        (
            ('Wanneer opent de winkel "Theepot" in {city}, alstublieft?', "Om {hour} uur, elke dag."),
            ("Welke bus gaat naar de winkel in {city}?", "Bus {bus}."),
            ("Wie runt de winkel in {city}?", "Dat doet {person}."),
        ),
    ),
    "polish": (
        ("pytanie", "odpowiedź"),
        (
            ('O której otwiera się sklep "Imbryk" w mieście {city}, proszę?', "O godzinie {hour}, każdego dnia."),
            ("Który autobus jedzie do sklepu w mieście {city}?", "Autobus {bus}."),
            ("Kto prowadzi sklep w mieście {city}?", "Prowadzi go {person}."),
        ),
    ),
    "russian": (
        ("вопрос", "ответ"),
        (
            ('Когда открывается магазин "Чайник" в городе {city}, пожалуйста?', "В {hour} часов, каждый день."),
            ("Какой автобус идёт к магазину в городе {city}?", "Автобус {bus}."),
            ("Кто управляет магазином в городе {city}?", "Им управляет {person}."),
        ),
    ),
    "chinese": (
        ("问题", "答案"),
        (
            ('请问{city}的"茶壶"商店几点开门,谢谢?', "每天{hour}点。"),
            ("去{city}的商店坐哪路公交车?", "{bus}路公交车。"),
            ("{city}的商店由谁经营?", "由{person}经营。"),
        ),
    ),
    "japanese": (
        ("質問", "回答"),
        (
            ('すみません、{city}の店"急須"は何時に開きますか?', "毎日{hour}時です。"),
            ("{city}の店へ行くバスはどれですか?", "{bus}番のバスです。"),
            ("{city}の店は誰が経営していますか?", "{person}さんです。"),
        ),
    ),
}


def questions(language: str = "english") -> list[tuple[str, str]]:
    """Twenty-four questions and answers, each question once."""
    rows = []
    for number, (city, hour, person) in enumerate(zip(CITIES, HOURS, PEOPLE, strict=True)):
        fill = {"city": city, "hour": hour, "bus": 10 + 7 * number, "person": person}
        rows += [(question.format(**fill), answer.format(**fill)) for question, answer in LANGUAGES[language][1]]
    return rows


def translations() -> list[tuple[str, str]]:
    """English questions and the same in German."""
    german = questions("german")
    return [(english, german[number][0]) for number, (english, _) in enumerate(questions())]


def dialogues() -> list[list[tuple[str, str]]]:
    """Conversations of two rounds about a shop: (user, assistant), (user, assistant)."""
    rows = questions()
    return [[rows[3 * shop + first], rows[3 * shop + 2]] for shop in range(len(CITIES)) for first in (0, 1)] + [
        [rows[3 * shop + 2], rows[3 * shop]] for shop in range(len(CITIES))
    ]


def pairs() -> list[tuple[str, str, str]]:
    """A question, a good answer and a worse one."""
    return [(question, answer, "No idea, ask somebody else.") for question, answer in questions()]


def articles() -> list[tuple[str, str, str]]:
    """Title, body and language of short pages about the shop's goods."""
    goods = {
        "en": ("green tea", "black tea", "the blue mug", "the teapot"),
        "de": ("Grüntee", "Schwarztee", "die blaue Tasse", "die Teekanne"),
        "fr": ("le thé vert", "le thé noir", "la tasse bleue", "la théière"),
    }
    texts = {
        "en": (
            (
                "Caring for {good}",
                "Keep {good} dry and away from light.\n\nThat way it lasts two years or longer.",
            ),
            ("The price of {good}", "From May on, {good} costs 10% less: we buy it from the makers now."),
        ),
        "de": (
            ("Pflege: {good}", "Lagern: trocken und dunkel, so gilt es für {good}.\n\nDann hält alles zwei Jahre."),
            ("Preis: {good}", "Ab Mai wird es 10 % günstiger, auch für {good}: Wir kaufen direkt ein."),
        ),
        "fr": (
            ("Entretien : {good}", "Au sec et à l’abri de la lumière : c’est la règle pour {good}.\n\nSoit deux ans."),
            ("Prix : {good}", "Dès mai, 10 % de moins pour {good} : nous achetons sur place."),
        ),
    }
    return [
        (title.format(good=good), body.format(good=good), language)
        for language, names in goods.items()
        for good in names
        for title, body in texts[language]
    ]


def records(tickets: Sequence[Ticket] = ALL_TICKETS) -> list[dict[str, Any]]:
    """Tickets as {text, label}."""
    return [{"text": ticket.body, "label": ticket.label} for ticket in tickets]
