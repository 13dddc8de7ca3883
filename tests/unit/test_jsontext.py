"""JSON without ``import json``: the same values, and where a text is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestrt import jsontext

ROOT = Path(__file__).resolve().parents[2]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_what_is_written_is_read_again(value: object) -> None:
    assert jsontext.loads(jsontext.dumps(value)) == value
    assert jsontext.parse(jsontext.pretty(value)) == value


@given(values, st.sampled_from(["\t", "  "]))
def test_pretty_is_what_json_writes(value: object, indent: str) -> None:
    assert jsontext.pretty(value, indent) == json.dumps(value, indent=indent)


@given(st.text(alphabet='{}[]",:0123456789.-+eE\\ud8\n truefalsn\ud800'))
def test_any_text_is_read_as_json_does_or_refused_with_value_error(text: str) -> None:
    try:
        wanted = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011  (that it is a ValueError is all there is to say)
            jsontext.parse(text)
    else:
        if "NaN" not in text and "Infinity" not in text:
            assert jsontext.parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b": tru}', "line 2, column 7: expecting value"),
        ("", "line 1, column 1: expecting value"),
        ('{"a" 1}', "line 1, column 6: expecting ':' delimiter"),
        ("{} {}", "line 1, column 4: extra data"),
        ('"a\nb"', "line 1, column 3: invalid control character at"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "its objects and arrays are nested too deeply"),
        ("9" * 10_000, "Exceeds the limit"),
    ],
)
def test_a_broken_text_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(")):
        jsontext.parse(text)


def test_a_name_twice_is_the_last_one_as_in_go() -> None:
    assert jsontext.loads('{"a": 1, "a": 2}') == {"a": 2}


def test_half_a_surrogate_pair_is_no_crash() -> None:
    assert jsontext.loads(r'"\ud800"') == "\ud800"
    assert jsontext.dumps("\ud800") == r'"\ud800"'
    assert jsontext.loads(r'"\ud83d\ude00"') == "\U0001f600"


def test_json_is_imported_for_broken_texts_only() -> None:
    code = (
        "import sys; from nestrt import jsontext\n"
        "jsontext.parse('{}'); print('json' in sys.modules)\n"
        "try: jsontext.parse('{')\n"
        "except ValueError as error: print(error, 'json' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == ("False\nline 1, column 2: expecting property name enclosed in double quotes True\n")
