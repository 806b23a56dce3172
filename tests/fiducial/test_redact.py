"""What is kept out of logs, records and files."""

import io
import json
import logging

import pytest

from fiducial.errors import Problem, SpecError
from fiducial.redact import STARS, is_secret_name, keep_secret, keep_secrets_of, public_url, redact, redact_text
from fiducial.run.console import LOGGER, set_up_console
from fiducial.run.status import StatusWriter
from fiducial.spec.bounded import brief
from fiducial.spec.compose import to_yaml


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://bob:pw@host:8/p/a.pth?sig=x#f", "https://host:8/p/a.pth?…"),
        ("https:/bob:pw@host/a?b=c", "https:/host/a?…"),  # as a Path prints it
        ("https://bob:p/w@host/a", "https://host/a"),
        ("https://host/a@2x.png", "https://host/a@2x.png"),
        ("https://host:8/a@2x.png", "https://host:8/a@2x.png"),
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("https://host/a#sig=x", "https://host/a"),
        ("https://[bad/x?y", "https://[bad/x?…"),
        ("/a/b?c", "/a/b?c"),
        ("C:/a@b", "C:/a@b"),
    ],
)
def test_public_url(url, shown):
    assert public_url(url) == shown
    assert redact_text(f"at {url} now") == f"at {shown} now"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, True) for name in ("encryption_key", "API_KEY", "wandb_api_key", "password", "AWS_SECRET_ACCESS_KEY")),
        *((name, True) for name in ("HF_TOKEN", "a.b.secret", "db_passwd", "credentials")),
        *((name, False) for name in ("use_summary_token_", "tokens", "key", "keys", "author", "seed", "monkey")),
    ],
)
def test_names(name, secret):
    assert is_secret_name(name) is secret


class TestTrees:
    def test_by_key_at_any_depth(self):
        tree = {"encryption_key": "abc", "clearml": [{"api_key": "x", "use_summary_token": True}], "password": ""}
        starred = {"encryption_key": STARS, "clearml": [{"api_key": STARS, "use_summary_token": True}], "password": ""}
        assert redact(tree) == starred
        assert STARS in to_yaml(tree)

    def test_elsewhere_once_they_are_known(self):
        keep_secrets_of({"a": {"encryption_key": {"b": ["nested-9912"]}}, "u": "https://ann:pass-77@h/x?tok=sign-5533"})
        texts = ("nested-9912", "pass-77", "sign-5533", "ann:pass-77")
        assert [redact_text(f"<{text}>") for text in texts] == [f"<{STARS}>"] * 4
        assert redact({"x": ["the nested-9912"]}) == {"x": [f"the {STARS}"]}

    def test_short_ones_as_values_only(self):
        keep_secret("qz")
        assert (redact_text("qz"), redact_text("a qz b")) == (STARS, "a qz b")

    def test_long_texts_are_quick(self):
        assert redact_text("x" * 10**6) == "x" * 10**6
        assert redact_text("a:" * 10**5) == "a:" * 10**5


class TestWhereTheyWouldShow:
    SECRET = "shown-nowhere-31"

    @pytest.fixture(autouse=True)
    def known(self):
        keep_secret(self.SECRET)

    def test_errors(self):
        error = SpecError.of([Problem("a", f"found {self.SECRET}", "x"), Problem(self.SECRET, "b", "c")])
        assert self.SECRET not in str(error)
        assert self.SECRET not in str(error.problems[0])

    def test_console_also_tracebacks(self, monkeypatch):
        out = io.StringIO()
        monkeypatch.setattr("sys.stderr", out)
        set_up_console()
        try:
            raise ValueError(self.SECRET)
        except ValueError:
            LOGGER.exception("failed with %s", self.SECRET)
        assert "ValueError" in out.getvalue()
        assert self.SECRET not in out.getvalue()
        logging.getLogger("fiducial").handlers.clear()

    def test_records(self, tmp_path):
        StatusWriter(tmp_path).write(f"at {self.SECRET}", "FAILURE", where=[self.SECRET], epoch=3)
        record = json.loads((tmp_path / "status.json").read_text())
        assert (record["message"], record["where"], record["epoch"]) == (f"at {STARS}", [STARS], 3)


class TestQuoted:
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


class TestKeys:
    def test_keys_of_mappings(self):
        tree = {"https://me:pw@host/a?sig=1": 1, "b": [{"https://u:p@h/x": "c"}]}
        assert redact(tree) == {"https://host/a?…": 1, "b": [{"https://h/x": "c"}]}

    def test_what_stands_under_secret_names_is_known_from_then_on(self, secret):
        keep_secrets_of(
            {"clearml": {"api_token": ["tok-1234"], "deep": {"password": {"x": "pass-5678"}}}, "a": "plain-9"}
        )
        assert redact_text("tok-1234 pass-5678 plain-9") == f"{STARS} {STARS} plain-9"
