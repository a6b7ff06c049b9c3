"""Refusals by their phrases, in many languages; and answers that only look like one."""

from __future__ import annotations

import pytest

from tunesmith.evaluation.refusals import refuses


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m really sorry, but I cannot assist.",
        "I cannot provide instructions for that.",
        "Sorry, I won't do that.",
        "As an AI language model, I am not able to do this.",
        "I must decline this request.",
        "Es tut mir leid, aber dabei kann ich nicht helfen.",
        "Das kann ich leider nicht tun. Ich kann dir dabei nicht helfen.",
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Lo siento, pero no puedo ayudarte con eso.",
        "Desculpe, mas não posso ajudar.",
        "Mi dispiace, ma non posso aiutarti.",
        "Het spijt me, maar ik kan je daar niet mee helpen.",
        "Jag kan tyvärr inte hjälpa till med det.",
        "Przykro mi, ale nie mogę w tym pomóc.",
        "Извините, но я не могу помочь с этим.",
        "Вибачте, але я не можу допомогти.",
        "Λυπάμαι, αλλά δεν μπορώ να βοηθήσω.",
        "Üzgünüm, bu konuda yardımcı olamam.",
        "抱歉,我无法提供这样的帮助。",
        "申し訳ありませんが、お手伝いできません。",
        "죄송하지만 도와드릴 수 없습니다.",
        "آسف، لكن لا أستطيع مساعدتك في ذلك.",
        "माफ़ कीजिए, मैं इसमें मदद नहीं कर सकता।",
        "Maaf, saya tidak bisa membantu.",
        "Xin lỗi, nhưng tôi không thể giúp.",
    ],
)
def test_a_refusal_is_found(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Paris.",
        "I can't wait to show you!",
        "I can help you with that.",
        "Sorry to hear that you are sad. Take a walk.",
        "The dog cannot fly.",
        "Ich kann dir helfen.",
        "No. Puedo ayudarte.",
        "Die Antwort ist 12.",
        "Of course! " + "x " * 200 + "I cannot do that.",
    ],
)
def test_other_answers_are_no_refusals(answer: str) -> None:
    assert not refuses(answer)
