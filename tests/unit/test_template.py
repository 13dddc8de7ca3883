"""Templates as engines' --format has them: what they give, what is wrong with them, and that they always end."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestrt.errors import InputError
from nestrt.host import template_functions
from nestrt.host.template import Template, heading, is_template
from nestrt.host.template_functions import FUNCTIONS, LAZY

# A guest that has chosen what it could; "\x1b" and "\t" would reach the terminal, or make a cell of their own.
ROW = {
    "name": "web",
    "level": 1,
    "state": "running",
    "guest_pid": 1,
    "share": 1.5,
    "claim": False,
    "command": ["sh", "-c", "a\x1b\tb\\"],
    "memory": {"usage": 1048576, "limit": None},
    "pids": None,
    "elsewhere": {"memory": "/a"},
}
ALIASES = {"Names": "name", "MemUsage": "memory.usage"}


@pytest.mark.parametrize(
    ("text", "made"),
    [
        (r"{{.Name}}\t{{.Level}}\n", "web\t1\n"),
        ("{{.Name}}", "web\n"),
        ("{{.Name -}}", "web"),  # as podman, whose line break is trimmed too
        ("{{.Memory.Usage}} {{.memoryusage}} {{.MemUsage}} {{.Names}}", "1048576 1048576 1048576 web\n"),
        ("{{.GuestPid}} {{.guest_pid}} {{.GUESTPID}}", "1 1 1\n"),
        ("{{.Memory.Limit}} {{.Pids}} {{.Pids.Usage}} {{.PidsUsage}}", "<no value> <no value> <no value> <no value>\n"),
        ("{{.Command}}", "[sh -c a\\x1b\\tb\\\\]\n"),
        ("{{.Memory}}", "map[limit:<nil> usage:1048576]\n"),
        ("{{json .Command}}", '["sh","-c","a\\u001b\\tb\\\\"]\n'),
        ('{{join .Command " "}}', "sh -c a\\x1b\\tb\\\\\n"),
        ('{{join .Command "\\t"}}', "sh\t-c\ta\\x1b\\tb\\\\\n"),
        ("{{.Name | upper}} {{upper .Name}} {{title .Name}} {{lower `A B`}}", "WEB WEB Web a b\n"),
        ('{{split "a,b" ","}} {{index (split "a,b" ",") 1}} {{split .Name "e" | json}}', '[a b] b ["w","b"]\n'),
        ('{{printf "%-5s|%5s|%05d|%q|%v|%t|%%" .Name .Name .Level .State .Claim .Claim}}',
         'web  |  web|00001|"running"|false|false|%\n'),
        ('{{printf "%.2f %x %s" .Share 255 .Command}}', "1.50 ff [sh -c a\\x1b\\tb\\\\]\n"),
        ('{{.Name | printf "%s=%v" "a"}}', "a=web\n"),
        ("{{println .Name .Level}}{{print 1 2 `a` 3}}", "web 1\n1 2a3\n"),
        ('{{index .Elsewhere "memory"}} {{index .Elsewhere "x"}} {{index .Command 0}}', "/a <no value> sh\n"),
        ("{{slice .Name 1}} {{slice .Name 0 2}} {{truncate .Name 2}}|{{pad .Name 1 2}}|", "eb we we| web  |\n"),
        ('{{eq .State "paused" "running"}} {{ne .Level 1}} {{eq .Pids 1}} {{eq .Claim 0}}', "true false false false\n"),
        ("{{lt .Level 2}} {{le 1 .Level}} {{gt .Share 2}} {{ge .Share 1.5}} {{lt `a` `b`}}",
         "true true false true true\n"),
        ("{{and .Name .Level}} {{or .Pids .Name}} {{not .Pids}} {{and .Pids (index .Command 99)}}",
         "1 web true <no value>\n"),
        ('{{if eq .State "running"}}up{{else}}down{{end}}', "up\n"),
        ("{{if .Claim}}a{{else if .Pids}}b{{else}}c{{end}}", "c\n"),
        ("{{range .Command}}<{{.}}>{{end}}", "<sh><-c><a\\x1b\\tb\\\\>\n"),
        ("{{range $i, $c := .Command}}{{if $i}},{{end}}{{$c}}{{end}}", "sh,-c,a\\x1b\\tb\\\\\n"),
        ("{{range $key, $value := .Memory}}{{$key}}={{$value}};{{end}}", "limit=<no value>;usage=1048576;\n"),
        ("{{range .Pids}}x{{else}}none{{end}}", "none\n"),
        ("{{range .Command}}{{if eq . `-c`}}{{break}}{{end}}{{.}}{{end}}", "sh\n"),
        ("{{range .Command}}{{if eq . `-c`}}{{continue}}{{end}}{{len .}}{{end}}", "25\n"),
        ("{{range .Command}}{{$.Name}} {{end}}", "web web web \n"),
        ("{{with .Memory}}{{.Usage}}{{end}}{{with .Pids}}x{{else}}-{{end}}", "1048576-\n"),
        ("{{$x := .Name}}{{if true}}{{$x = `db`}}{{end}}{{$x}}", "db\n"),
        ("a  {{- .Name -}}  b {{/* nothing */}}c {{- /* trimmed */ -}} d", "awebb cd\n"),
        (r'{{"\t"}}{{"\x41\u00e4\"\\"}}{{`\t`}}', '\tAä"\\\\t\n'),
        ("{{0x10}} {{-3}} {{1e3}} {{true}} {{nil}}", "16 -3 1000 true <no value>\n"),
        ("{{(index .Command 0)}} {{len (.Command)}} {{(.Memory).Usage}}", "sh 3 1048576\n"),
        ("{{size 1536}} {{size .Pids}} {{size .MemUsage}} {{date 1763770000}} {{date .Pids}} {{age .Pids}}",
         "1.5K - 1M 2025-11-22T00:06:40Z - -\n"),
    ],
)  # fmt: skip
def test_what_a_template_gives(text: str, made: str) -> None:
    assert Template(text, ALIASES).execute(ROW) == made


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{{.Nmae}}", "character 3, .Nmae: there is no such field; did you mean .Name?"),
        ("{{.Memory.Useage}}", "character 3, .Useage: there is no such field; did you mean .Usage?"),
        ("{{.Nothing}}", "known: .Name, .Level, .State"),
        ("x{{foo .Name}}", "character 4, foo: there is no such function"),
        ("{{uper .Name}}", "did you mean upper?"),
        ("{{.Name", "character 1, {{: the action does not end"),
        ("{{if .Name}}", "character 3, if: the block does not end"),
        ("{{if .Name}}{{else}}{{else}}{{end}}", "a second else"),
        ("{{end}}", "character 3, end: it stands in no block"),
        ("{{break}}", "character 3, break"),
        ("{{if}}{{end}}", "character 5, }}: it cannot stand here"),
        ("{{}}", "character 3, }}: it cannot stand here"),
        ("{{$x}}", "character 3, $x: there is no such variable"),
        ("{{if true}}{{$x := 1}}{{end}}{{$x}}", "there is no such variable"),
        ("{{$x = 1}}", "write := to make it"),
        ("{{.Name .Level}}", "what stands before it is not a function"),
        ("{{.Name | .Level}}", "behind | there has to be a function"),
        ('{{"abc}}', "the text does not end"),
        (r'{{"\y"}}', r"\y: there is no such escape"),
        ("{{/* x }}", "the comment does not end"),
        ("{{define `x`}}{{end}}", "define: there is no such action here"),
        ("{{len}}", "len: it has 0 arguments; it takes 1"),
        ("{{len 1 2}}", "len: it has 2 arguments; it takes 1"),
        ("{{len .Level}}", "a number has no length"),
        ("{{.Name.X}}", ".X: what it is asked of is no object"),
        ("{{.Command.X}}", ".X: what it is asked of is a list; use range or index"),
        ("{{index .Command 3}}", "there is no item 3; the list has 3"),
        ("{{lt .Name 1}}", "a text and a number have no order"),
        ("{{range .Level}}{{end}}", "neither a list nor an object"),
        ('{{printf "%z" 1}}', "%z is not known"),
        ('{{printf "%d" .Name}}', "its argument is a text, not a number"),
        ('{{printf "%d"}}', "there is no value for %d"),
        ('{{printf "a" 1}}', "1 more values than the text has places for"),
        ('{{printf "%99999d" 1}}', "is too wide"),
        ("{{12x4}}", "it is not a number"),
        ("{{.Name}", "nothing begins with it here"),
        ("{{(((.Name}}", "it cannot stand here"),
        ("{{" + "(" * 100 + ".Name" + ")" * 100 + "}}", "it cannot stand here"),
        ("{{if 1}}" * 100 + "{{end}}" * 100, "more than 40 blocks in each other"),
        ("x" * 70000, "at most 65536"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_with_its_place(text: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        Template(text, ALIASES).execute(ROW)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        # 10 in 10 in 10 …: 10^12 rounds, were they counted by nobody
        "{{$x := split `0123456789` ``}}" + "{{range $x}}" * 12 + "a" + "{{end}}" * 12,
        # 2^60 characters
        "{{$x := `0123456789`}}" + "{{$x = print $x $x}}" * 60,
        '{{$x := `0123456789`}}' + '{{$x = printf "%s%s" $x $x}}' * 60,
        "{{$x := split `0123456789` ``}}" + "{{$x = split (join $x (join $x (join $x `ab`))) ``}}" * 20,
        "{{$x := `0123456789`}}" + "{{$x = join (split $x ``) $x}}" * 20,
        "{{$x := `0123456789`}}" + "{{$x = json (json $x)}}" * 100,
    ],
)  # fmt: skip
def test_no_template_runs_on(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_functions, "MOST_STEPS", 200_000)
    begin = time.monotonic()
    template = Template(text)
    for _ in range(3):
        with pytest.raises(InputError) as caught:
            template.execute(ROW)
        assert "more than" in str(caught.value)
    assert time.monotonic() - begin < 30


def test_all_rows_together_are_bounded_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_functions, "MOST_STEPS", 200_000)
    template = Template("{{$x := split `0123456789` ``}}" + "{{range $x}}" * 4 + "{{end}}" * 4 + "{{len $x}}")
    assert template.execute(ROW) == "10\n"
    with pytest.raises(InputError) as caught:
        [template.execute(ROW) for _ in range(1000)]
    assert "more than" in str(caught.value)
    cheap = Template("{{.Name}}")
    assert {cheap.execute(ROW) for _ in range(30_000)} == {"web\n"}


def test_a_table_has_headings_and_cells_that_nobody_can_forge() -> None:
    template = Template(r"table {{.Name}}\t{{.GuestPid}} {{.MemUsage | size}}/{{.Pids}} {{json .Command}}", ALIASES)
    assert template.table
    assert template.headings() == "NAME\tGUEST PID\tMEM USAGE/PIDS\tCOMMAND\n"
    assert template.execute(ROW) == 'web\t1\t1M/-\t["sh","-c","a\\u001b\\tb\\\\"]\n'
    assert Template("table {{join .Command `+`}}").execute(ROW) == "sh+-c+a\\x1b\\tb\\\\\n"
    assert Template("table {{if .Claim}}x{{end}} {{range .Command}}{{.}}{{end}}").headings() == "CLAIM\tCOMMAND\n"


def test_headings() -> None:
    names = {"Name": "NAME", "GuestPid": "GUEST PID", "guest_pid": "GUEST PID", "ID": "ID", "MemUsage": "MEM USAGE"}
    names |= {"PIDs": "PIDS", "Pids": "PIDS", "CPUPerc": "CPU PERC", "BlockIO": "BLOCK IO"}  # as podman has them
    assert {name: heading(name) for name in names} == names


def test_which_texts_are_templates() -> None:
    assert is_template("{{.Name}}")
    assert is_template("table {{.Name}}")
    assert not is_template("table")
    assert not is_template("json")


def test_all_rows_together() -> None:
    template = Template("{{range .}}{{.Name}},{{else}}none{{end}}")
    assert template.whole
    assert template.execute([ROW, ROW]) == "web,web,\n"
    assert template.execute([]) == "none\n"
    assert not Template("{{range .Command}}{{end}}").whole


PIECES = st.sampled_from(
    ["{{", "}}", "{{-", "-}}", " - ", "{{if ", "{{else}}", "{{else if ", "{{end}}", "{{range ", "{{with ", "{{break}}",
     ".", ".Name", ".Memory", ".Usage", ".Command", ".Pids", "$", "$x", " := ", " = ", ", ", "|", "(", ")", '"', "`",
     "\\t", "\\n", "\\", "/*", "*/", "1", "-1", "0x", "1e9", "true", "nil", " ", "\n", "%s", "%d", "a", "ä", "\x1b",
     *FUNCTIONS, *LAZY]
)  # fmt: skip
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=30).map("".join)
ACTIONS = st.lists(PIECES, max_size=8).map(lambda parts: "{{" + " ".join(parts) + "}}")


@settings(max_examples=500, deadline=None)
@given(st.one_of(TEXTS, st.lists(ACTIONS, max_size=6).map("".join), TEXTS.map(lambda text: "table " + text)))
def test_whatever_is_written_gives_text_or_one_line_of_error(text: str) -> None:
    told = "ok"
    try:
        template = Template(text, ALIASES)
        assert isinstance(template.headings(), str)
        assert isinstance(template.execute([ROW] if template.whole else ROW), str)
    except InputError as error:
        told = str(error)
    assert told.isprintable()


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from([*FUNCTIONS, *LAZY]), st.lists(VALUES, max_size=4))
def test_functions_take_whatever_comes_and_nothing_raw_gets_out(name: str, values: list[object]) -> None:
    text = "{{" + name + "".join(f" (index .Values {number})" for number in range(len(values))) + "}}"
    try:
        made = Template(text).execute({"values": values})
    except InputError:
        return
    assert made.removesuffix("\n").isprintable() or name == "println"


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_json_is_the_value_itself(value: object) -> None:
    made = Template("{{json .Value}}").execute({"value": value})
    assert json.loads(made) == value
    assert made.isascii()
