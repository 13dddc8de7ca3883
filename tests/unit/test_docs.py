"""What is written agrees with what is there: manual pages, README.md, CHANGELOG.md, pyproject.toml."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from nestrt import errors
from nestrt.__main__ import COMMANDS, VERBS, WIDER, main
from nestrt.cli.broker import ACTIONS
from nestrt.cli.version import SPEC, VERSION
from nestrt.level.annotations import KNOWN, PROFILES
from nestrt.level.bound import DEFAULT_BOUND
from nestrt.level.policy import Policy
from nestrt.level.rules import ENGINES
from nestrt.level.toml import load_policy
from nestrt.oci.document import VERSION_MAX, VERSION_MIN

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text()
MAN = CHECKOUT / "nestrt" / "man"
PAGES = (
    "nestrt.1", "nestrt-audit.1", "nestrt-broker.1", "nestrt-change.1", "nestrt-completion.1", "nestrt-events.1",
    "nestrt-formats.5", "nestrt-graph.1", "nestrt-hook.1", "nestrt-host.1", "nestrt-launch.1", "nestrt-lock.1",
    "nestrt-metrics.1", "nestrt-oci.1", "nestrt-policy.5", "nestrt-ps.1", "nestrt-top.1",
)  # fmt: skip
GUEST_COMMANDS = (
    "status", "get", "ls", "create", "set", "move", "rm", "mount",
    "devices", "attach", "freeze", "thaw", "kill", "ps", "events", "react", "rules",
)  # fmt: skip
# The command whose --help a section of a page is about, and the page.
SECTIONS = {
    **{verb: ("nestrt-oci.1", f"nestrt {verb}") for verb in VERBS},
    "launch": ("nestrt-launch.1", "OPTIONS"),
    "broker": ("nestrt-broker.1", "OPTIONS"),
    **{name: (f"nestrt-{name}.1", "OPTIONS") for name in ("audit", "graph", "metrics", "top")},
    "--debug": ("nestrt-oci.1", "GLOBAL OPTIONS"),
    **{name: ("nestrt.1", f"nestrt {name}") for name in ("gc", "ls", "tree", "show", "why", "check")},
    **{name: ("nestrt-hook.1", f"nestrt {name}") for name in ("hook", "wrap")},
    **{f"hooks {name}": ("nestrt-hook.1", f"nestrt hooks {name}") for name in ("install", "uninstall", "status")},
    **{f"policy {name}": ("nestrt.1", f"nestrt policy {name}") for name in ("check", "explain")},
    **{f"guest {name}": ("nestrt.1", f"nestrt guest {name}") for name in GUEST_COMMANDS},
    **{name: ("nestrt-change.1", f"nestrt {name}") for name in ("freeze", "thaw")},
    **{f"broker {name}": ("nestrt-broker.1", f"nestrt broker {name}") for name in ACTIONS},
    **{f"host {name}": ("nestrt-host.1", name) for name in ("init", "status", "reset")},
    "lock": ("nestrt-lock.1", "OPTIONS"),
    "unlock": ("nestrt-lock.1", "SYNOPSIS"),
    "completion": ("nestrt-completion.1", "SYNOPSIS"),
    "schema": ("nestrt-formats.5", "SCHEMAS"),
}
# Verbs with a wider form have two pages: SECTIONS has the runtime's.
WIDER_SECTIONS = {
    **{verb: (f"nestrt-{verb}.1", "OPTIONS") for verb in ("ps", "events")},
    **{verb: ("nestrt-change.1", f"nestrt {verb}") for verb in ("update", "kill", "exec")},
}
# "The options of create, and:"
INCLUDED = {"run": "create"}
# What every command has, said once, and what nestrt-formats(5) says.
COMMON = {"-h", "--help", "--raw", "--no-headings"}
FLAG = r"(?<![\w-])--?[a-z][a-z0-9-]*"
# groff_man(7)
MACROS = {"TH", "SH", "SS", "TP", "TQ", "PP", "B", "BR", "BI", "RB", "I", "IR", "RI", "nf", "fi", "RS", "RE", "br"}


def plain(roff: str) -> str:
    """A line of a page without its escapes."""
    return re.sub(r"\\f[BIRP]", "", roff).replace("\\-", "-").replace("\\e", "\\").replace('"', "")


def sections(page: str) -> dict[str, list[str]]:
    """{heading: its lines}; a heading's own words end at the first that is no name: "nestrt create"."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (MAN / page).read_text().splitlines():
        if line.startswith((".SH ", ".SS ")):
            words = plain(line[4:]).split()
            if words[0] == "nestrt":
                words = [word for word in words if re.fullmatch(r"[a-z]+", word)]
            lines = found.setdefault(" ".join(words), [])
        lines.append(line)
    return found


def documented(page: str, heading: str) -> set[str]:
    """The flags that are the head of a paragraph in the section."""
    lines = sections(page)[heading]
    heads = [lines[n + 1] for n, line in enumerate(lines) if line in (".TP", ".TQ")]
    return {flag for head in heads for flag in re.findall(FLAG, plain(head).partition("=")[0])} - COMMON


def helped(capsys: pytest.CaptureFixture[str], words: str) -> str:
    """What ``nestrt WORDS --help`` prints."""
    try:
        status = main(["nestrt", *words.split(), "--help"])
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 0
    return capsys.readouterr().out


def flags(text: str) -> set[str]:
    """The flags in the table of a help text: what stands before the gap."""
    heads = [line.strip().partition("  ")[0] for line in text.splitlines() if re.match(r" {2,6}-", line)]
    return {flag for head in heads for flag in re.findall(FLAG, head)} - COMMON


@pytest.mark.parametrize("words", list(SECTIONS))
def test_every_flag_is_in_the_page_and_every_flag_of_the_page_is_there(
    capsys: pytest.CaptureFixture[str], words: str
) -> None:
    # With a global option it is the runtime's form.
    expected = flags(helped(capsys, f"--debug {words}" if words in WIDER else words))
    found = documented(*SECTIONS[words])
    if words in INCLUDED:
        found |= documented(*SECTIONS[INCLUDED[words]])
    if words == "--debug":
        found |= {"-v", "--version"} & documented("nestrt.1", "OPTIONS")
    assert found == expected


@pytest.mark.parametrize("verb", list(WIDER_SECTIONS))
def test_the_wider_form_of_a_verb_has_a_page(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with contextlib.suppress(SystemExit):
        importlib.import_module(f"nestrt.cli._host_{verb}").main(["--help"])
    assert documented(*WIDER_SECTIONS[verb]) == flags(capsys.readouterr().out)
    assert set(WIDER_SECTIONS) == set(WIDER)


def test_every_command_has_a_section_and_every_section_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    oci = {heading.split()[1] for heading in sections("nestrt-oci.1") if heading.startswith("nestrt ")}
    assert oci == set(VERBS)
    others = {heading.partition(" ")[2] for heading in sections("nestrt.1") if heading.startswith("nestrt ")}
    assert others == {*(words for words, (page, _) in SECTIONS.items() if page == "nestrt.1"), "delete"}
    listed = re.findall(r"^ {2,4}([a-z]+)(?= |$)", helped(capsys, "guest"), re.MULTILINE)
    assert {f"guest {name}" for name in listed} == {words for words in SECTIONS if words.startswith("guest ")}
    assert {words.split()[0] for words in SECTIONS} - {"--debug"} == {*COMMANDS, *VERBS}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_plain_man(page: str) -> None:
    text = (MAN / page).read_text()
    assert text.isascii()
    name = page[:-2].upper().replace("-", "\\-")
    assert text.startswith(f'.TH {name} {page[-1]} "" "nestrt {VERSION}" ')
    lines = text.splitlines()
    assert {line[1:].partition(" ")[0] for line in lines if line.startswith(".")} <= MACROS
    assert [line for line in lines if line.startswith("'")] == []  # a request too
    for begin, end in ((".nf", ".fi"), (".RS", ".RE")):
        assert lines.count(begin) == lines.count(end)
    assert re.findall(r"(?<!\\)--\w+", re.sub(r"^\.SS .*$", "", text, flags=re.MULTILINE)) == []
    if shutil.which("groff"):  # it knows best, and is not everywhere
        done = subprocess.run(["groff", "-man", "-ww", "-Tascii", MAN / page], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_pages_refer_to_pages_that_are_there() -> None:
    for page in PAGES:
        text = plain((MAN / page).read_text())
        for name, number in re.findall(r"(nestrt(?:-\w+)?) ?\((\d)\)", text):
            assert f"{name}.{number}" in PAGES, page
        for path in re.findall(r"examples/[\w./-]*\w", text):
            assert (CHECKOUT / path).exists(), f"{page}: {path}"


def test_installed_pages_and_version() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    assert project["project"]["version"] == VERSION
    patterns = project["tool"]["setuptools"]["data-files"]
    installed = {path.name: Path(to).name for to, globs in patterns.items() for g in globs for path in CHECKOUT.glob(g)}
    assert installed == {page: f"man{page[-1]}" for page in PAGES}
    released = re.findall(r"^## \[(\d[^]]*)\]", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == VERSION
    assert f"{VERSION_MIN} to {VERSION_MAX}" in (MAN / "nestrt-oci.1").read_text()
    assert SPEC == VERSION_MAX


def statuses() -> dict[str, str]:
    """The table in errors.py."""
    return dict(re.findall(r"^(\d[\w+]*) +(.+)$", errors.__doc__ or "", re.MULTILINE))


def test_exit_statuses() -> None:
    """The same everywhere; README.md and the page say of 0, and of signals, more than errors.py."""
    expected = statuses()
    assert list(expected) == ["1", "2", "3", "4", "5", "125", "126", "127", "128+n"]
    for kind in (errors.NestrtError, errors.InputError, errors.NotFound, errors.StateError, errors.HostError):
        assert str(kind.status) in expected
    table = README.partition("### Exit statuses")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| ([\d+n]+) \| (.*) \|$", table, re.MULTILINE))
    assert list(rows) == ["0", *expected]
    same = [key for key in expected if key != "128+n"]
    assert {key: rows[key].replace("`", "") for key in same} == {key: expected[key] for key in same}
    lines = sections("nestrt.1")["EXIT STATUS"]
    assert [plain(lines[n + 1])[3:] for n, line in enumerate(lines) if line == ".TP"] == list(rows)
    text = " ".join(map(plain, lines)).lower()
    for key in ("2", "3", "4", "5"):
        assert expected[key].lower() in text


def test_annotations() -> None:
    """README.md's table and the page have those that there are, with their defaults."""
    table = README.partition("| annotation |")[2].partition("\n\n")[0]
    found: list[str] = []
    for cell in re.findall(r"^\| (`nestrt[^|]*) \|", table, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", cell):
            found.append(found[-1].rpartition(".")[0] + name if name.startswith(".") else name)
    assert found == list(KNOWN)
    heads = re.findall(r"^\\fB(nestrt\.[\w.]+)\\fR=", (MAN / "nestrt-policy.5").read_text(), re.MULTILINE)
    assert heads == list(KNOWN)
    defaults = {"max_level": 3, "max_groups": 1000, "max_depth": 8}
    assert {key: getattr(Policy(), key) for key in defaults} == defaults
    for name in defaults:
        assert re.search(rf"\| `nestrt\.\w+\.{name}` \| [^|]* \| {defaults[name]} \|", table)


@pytest.mark.parametrize("text", [README, (MAN / "nestrt-policy.5").read_text()], ids=["README", "nestrt-policy.5"])
def test_policies_and_bindings(text: str) -> None:
    flat = " ".join(plain(text).replace(".BR ", "").replace(".B ", "").split())
    for name in (*PROFILES, *ENGINES):
        assert name in flat
    bound = DEFAULT_BOUND
    assert f"level {bound.max_level}, no override, {bound.max_groups} groups" in flat
    assert not bound.override


def test_the_policy_file_in_the_readme_is_one() -> None:
    """With nothing but defaults above [limits], which are examples; in the page, too."""
    for text in (
        README.partition("## The policy file")[2].partition("```toml")[2].partition("```")[0],
        "\n".join(
            part.partition("\n.RE")[0]
            for part in plain_quoted((MAN / "nestrt-policy.5").read_text()).split(".nf\n.RS\n")[1:3]
        ),
    ):
        above, limits, below = text.partition("[limits]")
        assert limits
        load_policy(text, "README.md")
        policy = load_policy(above, "README.md")
        assert {k: v for k, v in policy.__dict__.items() if k != "source"} == {
            k: v for k, v in Policy().__dict__.items() if k != "source"
        }
        assert below


def plain_quoted(roff: str) -> str:
    return roff.replace("\\-", "-")


def command_lines(text: str) -> list[str]:
    """What a reader would type, in the indented and the fenced parts of a Markdown text, and in its quotes."""
    lines = [re.sub(r"^(# |sudo )", "", line.strip()) for line in text.splitlines() if line.startswith("    ")]
    quoted = re.findall(r"`([^`\n]+)`", text)
    return [line for line in (*lines, *quoted) if re.match(r"(nestrt|examples/|tests/|hooks/)", line)]


def test_commands_in_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    """Each names a command, and flags that it has, or a file that is there."""
    checked = 0
    for line in command_lines(README):
        words = re.split(r"\s*[|;&#]", line)[0].split()
        if "/" in words[0]:
            assert (CHECKOUT / words[0]).exists(), line
            continue
        if words[0] != "nestrt" or len(words) < 2 or not words[1].isalpha() or not words[1].islower():
            continue
        assert words[1] in (*COMMANDS, *VERBS), line
        if words[1] in ("policy", "guest", "hook", "hooks", "host"):
            continue
        own = words[2 : words.index("--")] if "--" in words else words[2:]
        known = flags(helped(capsys, words[1])) | COMMON
        for word in own if words[1] != "exec" else own[:1]:
            if word.startswith("-"):
                assert word.partition("=")[0] in known, line
        checked += 1
    assert checked > 8


def test_paths_in_the_readme() -> None:
    for path in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (CHECKOUT / path).exists(), path
    for path in re.findall(r"\b(?:examples|tests|hooks)/[\w./-]*\w", README):
        assert (CHECKOUT / path).exists(), path
    for script in ("examples/quickstart", "examples/oci-quickstart", "examples/bundles/make", "tests/run"):
        assert os.access(CHECKOUT / script, os.X_OK), script
