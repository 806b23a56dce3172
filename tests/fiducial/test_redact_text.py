"""Secrets in whatever is said: starred out by place, and from then on by text."""

import pytest

from fiducial.redact import STARS, keep_secrets_of, redact, redact_text
from fiducial.spec.bounded import brief


class TestText:
    @pytest.mark.parametrize("text", ["hunter2", "it's", 'say"so', "to'pk\ney\x00", "back\\slash", "ähm\u2028"])
    def test_also_as_messages_quote_it(self, secret, text):
        secret(text)
        for said in (text, f"found {text!r} here", f"key={text};", f"{[text]}"):
            assert text not in redact_text(said)
            assert repr(text)[1:-1] not in redact_text(said)
            assert STARS in redact_text(said)

    def test_short_ones_only_where_they_stand_alone(self, secret):
        secret("abq")
        assert redact_text("abq") == STARS
        assert redact_text("encryption_key is 'abq', a text") == f"encryption_key is {STARS}, a text"
        assert redact_text("dabqling") == "dabqling"

    def test_of_a_long_one_nothing_is_shown(self, secret):
        token = "eyJ" + "aB3x" * 200
        secret(token)
        assert brief(token) == f"'{STARS}'"
        assert brief("x" * 150 + token) == f"'{'x' * 150}{STARS}'"
        assert brief("y" * 300) == f"'{'y' * 199}…"


class TestTree:
    def test_keys_of_mappings(self):
        tree = {"https://me:pw@host/a?sig=1": 1, "b": [{"https://u:p@h/x": "c"}]}
        assert redact(tree) == {"https://host/a?…": 1, "b": [{"https://h/x": "c"}]}

    def test_what_stands_under_secret_names_is_known_from_then_on(self, secret):
        keep_secrets_of(
            {"clearml": {"api_token": ["tok-1234"], "deep": {"password": {"x": "pass-5678"}}}, "a": "plain-9"}
        )
        assert redact_text("tok-1234 pass-5678 plain-9") == f"{STARS} {STARS} plain-9"
