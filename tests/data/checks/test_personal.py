from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.checks.personal import KINDS, abbreviated, masked, personal_data

KEY_BODY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSj" * 2
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"


@pytest.mark.parametrize(
    ("kind", "item"),
    [
        ("email", "jo@example.com"),
        ("email", "jo.doe+news@mail.example.co.uk"),
        ("email", "josé@exämple.de"),
        ("phone", "+1 415 555 2671"),
        ("phone", "+44 (0)20 7946 0958"),
        ("phone", "+4930901820"),
        ("phone", "(555) 123-4567"),
        ("phone", "555-123-4567"),
        ("phone", "415.555.2671"),
        ("iban", "DE89 3704 0044 0532 0130 00"),
        ("iban", "GB29NWBK60161331926819"),
        ("iban", "MT84 MALT 0110 0001 2345 MTLC AST0 01S"),
        ("card", "4111 1111 1111 1111"),
        ("card", "5500-0000-0000-0004"),
        ("card", "378282246310005"),
        ("secret", "AKIAIOSFODNN7EXAMPLE"),
        ("secret", "ghp_" + "a1B2c3D4e5F6" * 3),
        ("secret", "github_pat_" + "11ABCDEFG0_" * 6),
        ("secret", "sk-proj-" + "a1B2c3D4e5F6" * 4),
        ("secret", "sk-ant-api03-" + "a1B2c3D4e5F6" * 4),
        ("secret", "xoxb-123456789012-abcdefGHIJKL"),
        ("secret", "AIzaSyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q"),
        ("secret", "sk_live_4eC39HqLyjWDarjtT1zdp7dc"),
        ("secret", "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH"),
        ("secret", JWT),
        ("secret", f"-----BEGIN RSA PRIVATE KEY-----\n{KEY_BODY}\n-----END RSA PRIVATE KEY-----"),
    ],
)
def test_an_item_is_found_alone_and_in_a_sentence(kind: str, item: str):
    for text in (item, f"Take {item} please.", f"看{item}。", f'{{"value": "{item}"}}'):
        assert [(found.kind, text[found.start : found.end]) for found in personal_data(text)] == [(kind, item)], text
        assert masked(text) == text.replace(item, f"[{kind}]")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("my password: hunter2.", "hunter2"),
        ('api_key = "abcdEFGH1234567890xyz"', "abcdEFGH1234567890xyz"),
        ('{"password": "Tr0ub4dor&3"}', "Tr0ub4dor&3"),
        ("postgres://jo:s3cret@db.example.com/x", "jo:s3cret"),
        ("Authorization: Bearer abcdefghij0123456789klm", "abcdefghij0123456789klm"),
        ("password: jo@site9.com", "jo@site9.com"),
    ],
)
def test_the_value_of_an_assignment_is_a_secret_and_its_name_is_not(text: str, secret: str):
    assert masked(text) == text.replace(secret, "[secret]")


@pytest.mark.parametrize(
    "text",
    [
        "icon@2x.png",
        "git@github.com:owner/repository.git",
        "@user@mastodon.social",
        "lodash@4.17.21",
        "y = x@w.mean()",
        "from 2024-01-15 10:30:00+0000 to 2024-01-16",
        "ISBN 978-3-16-148410-0",
        "order 123-456-7890",
        "server 192.168.100.12 and 10.20.30.400",
        "version 12.3.4567.8901",
        "id 41555526711234567890",
        "12345678901234",
        "+1000000000",
        "3.14159265358979",
        "DE89 3704 0044 0532 0130 01",
        "XX89370400440532013000",
        "AB12 CDEF 3456 GHIJ 7890",
        "4111 1111 1111 1112",
        "4006381333931",
        "9111111111111111",
        "Password: must contain 8 characters",
        "password: SHA-256 hashed",
        'password=os.environ["X1"]',
        "token: 123456",
        "tokens: 8192tokens",
        "sk-learn and task-oriented-dialogue-with-many-words-2024",
        "sk-" + "x" * 40,
        "password: <your-password-1>",
        "the header -----BEGIN PRIVATE KEY----- is the first line of a file that holds a key",
        "https://user:password@host.example/x",
    ],
)
def test_what_only_looks_like_personal_data_is_left(text: str):
    assert personal_data(text) == []
    assert masked(text) == text


def test_words_in_capitals_and_digits_behind_a_number_are_no_part_of_it():
    assert masked("DE89 3704 0044 0532 0130 00 AND MORE TEXT") == "[iban] AND MORE TEXT"
    assert masked("+1 415 555 2671 24/7") == "[phone] 24/7"
    assert masked("4111 1111 1111 1111 123") == "[card] 123"


def test_a_number_without_a_form_of_its_own_needs_a_word_before_it():
    assert masked("call me at 123-456-7890.") == "call me at [phone]."
    assert personal_data("item 123-456-7890.") == []
    assert masked("Visa card 4222222222222") == "Visa card [card]"


def test_only_the_kinds_that_are_named_are_masked():
    text = "jo@example.com, +1 415 555 2671"
    assert masked(text, {"phone"}) == "jo@example.com, [phone]"
    assert masked(text, ()) == text


def test_of_an_item_four_characters_are_shown_at_most():
    assert abbreviated("jo@example.com") == "jo…om"
    assert abbreviated("hunter2") == "h…"


PIECES = [
    *(
        "jo@example.com",
        "+14155552671",
        "DE89370400440532013000",
        "4111111111111111",
        "AKIAIOSFODNN7EXAMPLE",
        "[email]",
    ),
    *("password: ", "://", "a", "1", " ", "-", ".", "@", ":", "\n", "é", "\ud800", "hunter2", "eyJ", "(555) 123-4567"),
]


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_items_lie_in_the_text_in_order_and_masking_twice_changes_nothing(text: str):
    found = personal_data(text)
    places = [place for item in found for place in (item.start, item.end)]
    assert places == sorted(places)
    assert all(0 <= item.start < item.end <= len(text) and item.kind in KINDS for item in found)
    once = masked(text)
    assert masked(once) == once
    assert personal_data(once) == []
