from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from boli.corpus.pii import KINDS, Span, find, replace
from boli.corpus.pii_numbers import check_digit_holds
from boli.errors import CorpusError

# Made-up data: the check digit of 2345 6789 0124 holds, that of 2345 6789 0123 does not.
FOUND = {
    "EMAIL": [
        "ram.kumar@example.org",
        "ram_77+x@mail.example.co.in",
        "RAM@GMAIL.COM",
        "ｒａｍ＠ｇｍａｉｌ．ｃｏｍ",
        "ram @ gmail.com",
        "ram@ ndtv.com",
        "ram @gmail . com",
        "ram at gmail dot com",
        "ram dot kumar at gmail dot com",
        "Ram.77 at gmail.com",
        "ram[at]gmail[dot]com",
        "ram (at) example (dot) co (dot) in",
        "ram {at} example.org",
        "ram at the rate gmail.com",
        "राम एट द रेट जीमेल डॉट कॉम",
        "ram@gmail .com",
        "राम एट जीमेल डॉट कॉम",
        "ram एट gmail डॉट com",
        "ram@yahoo.कॉम",
        "राम@डाक.भारत",
    ],
    "PHONE": [
        "9812345678",
        "09812345678",
        "+919812345678",
        "+91 98123 45678",
        "+91-98123-45678",
        "+91 (0) 98123 45678",
        "0091 9812345678",
        "(+91) 9812345678",
        "+(91)-9812345678",
        "91 98123 45678",
        "919812345678",
        "98123 45678",
        "981-234-5678",
        "981.234.5678",
        "9812 345 678",
        "98 1234 5678",
        "98123\u200b45678",
        "98123\u00a045678",
        "98123–45678",
        "९८१२३४५६७८",
        "०९८१२ ३४५६७८",
        "৯৮১২৩৪৫৬৭৮",
        "୯୮୧୨୩୪୫୬୭୮",
        "೯೮೧೨೩೪೫೬೭೮",
        "᱙᱘᱑᱒᱓᱔᱕᱖᱗᱘",
        "۹۸۱۲۳۴۵۶۷۸",
        "𑓙𑓘𑓑𑓒𑓓𑓔𑓕𑓖𑓗𑓘",
        "９８１２３４５６７８",
        "0612-2234567",
        "(0612) 2234567",
        "0612 223 4567",
        "011-23456789",
        "+91-11-2345 6789",
        "06421-446921",
        "०६१२-२२३४५६७",
        "+977 9841234567",
        "+1 202-555-0123",
    ],
    "AADHAAR": ["234567890124", "2345 6789 0124", "2345-6789-0124", "२३४५ ६७८९ ०१२४"],
    "PAN": ["ABCPK1234F", "ＡＢＣＰＫ１２３４Ｆ"],
    "UPI": ["ramkumar@ybl", "ram.kumar-1@okicici", "9812345678@paytm", "ram@SBI"],
    "IFSC": ["SBIN0001234", "HDFC0ABC123"],
    "VEHICLE": [
        "BR01AB1234",
        "BR 01 AB 1234",
        "BR-01-A-1234",
        "JH 5 C 0042",
        "22 BH 1234 AA",
        "BR ०१ AB १२३४",
    ],
    "URL": [
        "http://example.org",
        "https://example.org/a/b_1.html?page=2#top",
        "www.example.org/a",
        "magahi.example.com",
        "bit.ly/3xYz",
        "htttp://example.org",
        "http://epaper.example.com/2011/08/13/%C2%B8F%C2%A6FWXe-13082011010023.shtml?Mode=1",
        "http://in.example.com/news/4_4_8202579_1.html",
    ],
    "SECRET_URL": [
        "https://ram:geheim@example.org/",
        "https://example.org/r?token=abc123",
        "https://example.org/r?a=1&access_token=x9y8z7",
        "https://example.org/r?email=ram%40gmail.com",
        "https://example.org/u/ram@gmail.com/post",
        "https://wa.me/919812345678",
        "https://example.org/reset/a8f3k2m9x7c1v5b4n6q0w2e8",
        "https://example.org/#key=a8f3k2",
        "https://example.org/x?d=eyJhbGciOiJIUzI1.eyJzdWIiOiIx",
    ],
}


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind, values in FOUND.items() for value in values]
)
@pytest.mark.parametrize(
    "around", ["{}", "हमर पता {} हइ।", "({}), आउर", "«{}»;\nदोसर पाँति", "नाम: {}।", "देखऽ {}!"]
)
def test_personal_data_is_found_to_the_code_point(kind: str, value: str, around: str) -> None:
    text = around.format(value)
    assert [(span.kind, text[span.start : span.end]) for span in find(text)] == [(kind, value)]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("मो0-9812345678", "PHONE", "9812345678"),
        ("मो॰०९८१२३४५६७८", "PHONE", "०९८१२३४५६७८"),
        ("patna9812345678.", "PHONE", "9812345678"),
        ("फोन: 612-2234567", "PHONE", "612-2234567"),
        ("फोन 06122234567", "PHONE", "06122234567"),
        ("मोबाइल: 98 12 34 56 78", "PHONE", "98 12 34 56 78"),
        ("ईमेल-ram@gmail.com,", "EMAIL", "ram@gmail.com"),
        ("9812345678-9", "PHONE", "9812345678"),
        ("खाता सं0 30123456789", "ACCOUNT", "30123456789"),
        ("call 9 8 1 2 3 4 5 6 7 8", "PHONE", "9 8 1 2 3 4 5 6 7 8"),
        ("Mobile No. 9800000000", "PHONE", "9800000000"),
        ("gmail.comwww ram@gmail.comसमय मिले", "EMAIL", "ram@gmail.com"),
        ("mailto:ram@gmail.comThis is", "EMAIL", "ram@gmail.com"),
        ("ram@gmail.com.Then", "EMAIL", "ram@gmail.com"),
        ("ram@yahoo.कॉममैं", "EMAIL", "ram@yahoo.कॉम"),
        ("(बिहार)ram@gmail.com फैक्स", "EMAIL", "ram@gmail.com"),
        ("UPI: ram@newbank", "UPI", "ram@newbank"),
        ("खाता संख्या: 30123456789", "ACCOUNT", "30123456789"),
        ("A/c no. 5010 0123 4567 89", "ACCOUNT", "5010 0123 4567 89"),
        ("खाता ३०१२३४५६७८९", "ACCOUNT", "३०१२३४५६७८९"),
        ("bank account 9812345678", "ACCOUNT", "9812345678"),
        ("खाता धारक मोबाइल 9812345678", "PHONE", "9812345678"),
        ("देखऽ http://example.org/a.htmlमगही विकास", "URL", "http://example.org/a.html"),
        ("(http://example.org/a_(b))", "URL", "http://example.org/a_(b)"),
        ("9812345678:\x00", "PHONE", "9812345678"),
    ],
)
def test_neighbors_decide_what_a_number_is(text: str, kind: str, value: str) -> None:
    (span,) = [span for span in find(text) if span.kind != "URL" or kind == "URL"]
    assert (span.kind, text[span.start : span.end]) == (kind, value)


@pytest.mark.parametrize(
    "text",
    [
        "मंगल भवन अमंगल हारी ॥34॥ ॥ १२३ ॥",
        "15-08-1947, 15/08/1947, 1947.08.15, १५-०८-१९४७ 10:30",
        "2011-2012 आ 1857 - 1947, 2010 2011 2012 2013",
        "पृष्ठ 123-145, पृ॰ 1001-1010, 78901-78925",
        "₹9812345678, Rs. 9,81,23,456, रु 8123456789",
        "9812345678 रुपये, 7900000000 लोग, 8000000000",
        "पटना 800001, नालंदा 803 101, पिन ८०३१११",
        "1234567890, 5551234567, 12345678901234567890",
        "3.14159265358979 9876.543210 0.9812345678",
        "2345 6789 0123",  # the check digit is wrong
        "234567890123",
        "1234 5678 9010, 0000 0000 0000",
        "4111 1111 1111 1111",
        "9 8 7 6 5 4 3 2 1 0",
        "7 8 9 10 11 12 13 14 15",
        "98 76 54 32 10",
        "65000-75000 तक, 65000 75000",
        "98123 45678 11111 22222 33333",
        "1800-345-6789 आ 139",
        "ISBN 978-81-7055-123-4, ISBN 81-7055-123-4",
        "UP 15 OF 2011, IN 12 A 2010, BR 2014",
        "ABCDE1234F, abcpk1234f, SBIN1001234",
        "192.168.100.200, 10.0.0.1:8080",
        "@ram, ram@, @ 50 रुपये, a @ b",
        "paid at the rate 7.50, at the rate of 12.In 1996",
        "look at gmail.com, meet at noon dot dot, घर एट",
        "e.g. this.That, i.e. so... 3.In 1996",
        "1. 2. 3. 4. 5. 6. 7. 8. 9. 10. 11. 12.",
        "6 x 7 = 42; 121 + 132 + 143 = 396; 98123+45678",
        "खाता 2011-12, खाते 12345",
        "item_9812345678_v2",
    ],
)
def test_other_numbers_and_signs_are_left(text: str) -> None:
    assert [text[span.start : span.end] for span in find(text) if span.kind != "URL"] == []


def test_account_near_its_branch_needs_no_word() -> None:
    text = "राम 30123456789 SBIN0001234 पटना, 2011 में 12345678"
    assert [(span.kind, text[span.start : span.end]) for span in find(text)] == [
        ("ACCOUNT", "30123456789"),
        ("IFSC", "SBIN0001234"),
    ]
    assert find("राम 30123456789 " + "क " * 60 + "SBIN0001234")[0].kind == "IFSC"


def test_what_is_in_a_url_or_an_email_is_not_found_again() -> None:
    text = "http://example.org/9812345678 9812345678@gmail.com 9812345678@ybl"
    assert [span.kind for span in find(text)] == ["SECRET_URL", "EMAIL", "UPI"]


def test_two_numbers_side_by_side_are_two() -> None:
    for sign in (", ", ",", " / ", "/", " ", "-"):
        assert len(find(f"9812345678{sign}9712345678")) == 2, sign


def test_placeholders_are_typed_and_the_same_for_the_same_value() -> None:
    text = (
        "फोन 9812345678, +91 98123-45678, ०९८१२३४५६७८ आ 9712345678; "
        "RAM@gmail.com, ram at gmail dot com"
    )
    assert replace(text).text == (
        "फोन <PHONE_1>, <PHONE_1>, <PHONE_1> आ <PHONE_2>; <EMAIL_1>, <EMAIL_1>"
    )
    assert replace(text).counts == {"PHONE": 4, "EMAIL": 2}


def test_plain_urls_stay_unless_told_otherwise() -> None:
    text = "http://example.org/a आ https://example.org/?token=abcdef"
    assert replace(text).text == "http://example.org/a आ <SECRET_URL_1>"
    assert replace(text, keep=()).text == "<URL_1> आ <SECRET_URL_1>"
    assert [span.kind for span in replace(text).spans] == ["URL", "SECRET_URL"]


def test_replacing_again_changes_nothing_and_takes_no_number_twice() -> None:
    once = replace("फोन 9812345678, ram@gmail.com").text
    assert replace(once) == replace(once).__class__(once, ())
    assert replace(once + " 9712345678").text == once + " <PHONE_2>"


def test_names_come_from_whoever_finds_them() -> None:
    def finder(text: str) -> Iterable[tuple[int, int]]:
        return [match.span() for match in re.finditer("रवीश|ravi|Ravi", text)]

    replaced = replace("रवीश ravi@gmail.com Ravi रवीश", names=finder)
    assert replaced.text == "<NAME_1> <EMAIL_1> <NAME_2> <NAME_1>"
    assert replace("कुछ ना", names=finder).text == "कुछ ना"


def test_name_outside_the_text_is_refused() -> None:
    for span in ((0, 9), (-1, 2), (2, 2), (3, 1)):
        with pytest.raises(CorpusError, match="span"):
            find("abcd", names=lambda text, span=span: [span])  # type: ignore[misc]


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(CorpusError, match="'SURL'"):
        replace("a", keep=("SURL",))


def test_personal_data_is_not_in_the_repr_of_a_span() -> None:
    (span,) = find("9812345678")
    assert "98" not in repr(span)
    assert span == Span(0, 10, "PHONE", "9812345678")
    assert span.kind in KINDS


@pytest.mark.parametrize("digits", ["2363", "123451", "84736430954837284567892", "234567890124"])
def test_verhoeff_holds_for_known_numbers(digits: str) -> None:
    assert check_digit_holds(digits)


def test_verhoeff_finds_every_wrong_digit_and_every_swap_of_neighbors() -> None:
    good = "234567890124"
    for place in range(12):
        for digit in set("0123456789") - {good[place]}:
            assert not check_digit_holds(good[:place] + digit + good[place + 1 :])
        swapped = good[:place] + good[place : place + 2][::-1] + good[place + 2 :]
        assert swapped == good or not check_digit_holds(swapped)


@pytest.mark.parametrize(
    "text",
    [
        "@" * 100_000,
        "a@" * 50_000,
        "ram at " * 20_000 + "gmail dot",
        "9" * 200_000,
        "98123 " * 30_000,
        "+91 " * 50_000,
        "www." * 50_000,
        "http://" + "a" * 100_000 + ")" * 100_000,
        "http://" + "?key=" * 50_000,
        "http://" + "a@" * 50_000,
        "SBIN0001234 123456789 " * 10_000,
        "a." * 100_000,
        "खाता " * 40_000 + "1234567890123",
        "9812345678 " * 20_000,
    ],
    ids=lambda text: text[:12],
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    find(text)  # quadratic time would run into the limit of the suite
