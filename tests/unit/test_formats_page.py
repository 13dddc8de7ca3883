"""nestrt-formats(5) has the fields of the schemas, all functions of templates, and their bounds."""

from __future__ import annotations

from nestrt.host import template_functions, template_parse
from support.format_page import PAGE, with_section

TEXT = PAGE.read_text()


def test_fields_are_those_of_the_schemas() -> None:
    assert with_section(TEXT) == TEXT, "python3 tests/support/format_page.py writes the section anew"
    assert TEXT.isascii()


def test_functions_and_bounds() -> None:
    begin = TEXT.index('.SS "Functions"')
    section = TEXT[begin : TEXT.index(".SH SCHEMAS")]
    words = set(section.replace("\\fB", " ").replace("\\fR", " ").replace("\\fI", " ").replace(",", " ").split())
    assert {*template_functions.FUNCTIONS, *template_functions.LAZY} <= {word.strip('"') for word in words}
    assert f"{template_parse.LONGEST} characters and {template_parse.DEEPEST} blocks" in section
    assert f"{template_functions.MOST_STEPS // 10**6} million steps" in section
    assert f"{template_functions.MOST_TEXT >> 20} million" in section
    assert all(name in section for name in template_parse.ABSENT)
