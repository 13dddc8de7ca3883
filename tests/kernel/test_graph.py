"""``nestrt graph`` of real groups: the files that it writes, and what Debian's chromium makes of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nestrt.host.marks import escape
from nestrt.host.picture import Box, Painter, Part
from nestrt.host.picture_html import html
from nestrt.host.picture_place import place as place_boxes
from nestrt.host.picture_style import DARK, LIGHT
from nestrt.host.picture_svg import WIDTH
from nestrt.host.render import human
from nestrt.host.sight import Sight
from nestrt.host.walk import walk
from nestrt.plan.facts import Hierarchy
from nestrt.probe.facts import read_hierarchies
from support import hostside
from support.browser import Browser, attempt, browser, pixels
from support.need import SLOW, require
from support.runner import Nestrt, Result, wait_for

TOP = f"/nestrt-test-graph-{os.getpid()}"
NAME = f"nestrt-tg-{os.getpid()}"
SVG = "{http://www.w3.org/2000/svg}"
MIB = 1 << 20
HELD = 150 * MIB
# A group's name has no "/", a mark's texts may.
HOSTILE = (
    "<script>alert(1)<script>", '"><svg onload=alert(1)>', "]]>", "<img src=x onerror=alert(1)>", "'\"&lt;&#0;",
    "\u202e\u2028\x1b[31m", os.fsdecode(bytes([0xFF]) * 200 + b"</x>".replace(b"/", b"\\")),
)  # fmt: skip
BREAK_OUT = "</script><script>alert(2)</script>]]><img src=http://127.0.0.1:9/x onerror=alert(3)>"


class Scene:
    """
    TOP
    └ outer         [512M]  trusted mark
      └ guest       [512M]
        ├ half      [256M]  a process that holds 150M
        ├ <script>… "><svg… ]]> …   no limit
        └ nestrt            left out: it only holds a guest
          └ inner   [64M]   user mark: a claim, whose command breaks out of a script
            └ guest
              └ a, b, c     [48M] each: 2.2 times as much as inner has
    """

    def __init__(self) -> None:
        self.holder: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        for hierarchy in hostside.hierarchies():
            if hierarchy.version == 2:
                self._enable(hierarchy, hierarchy.mountpoint)
        for path in ("", "/outer", "/outer/guest", "/outer/guest/nestrt", "/outer/guest/nestrt/inner"):
            self.group(path)
        self.group("/outer/guest/nestrt/inner/guest")
        self.group("/outer/guest/half", leaf=True)
        for name in HOSTILE:
            self.group(f"/outer/guest/{name}", leaf=True)
        for name in "abc":
            self.group(f"/outer/guest/nestrt/inner/guest/{name}", leaf=True)
            self._limit(f"/outer/guest/nestrt/inner/guest/{name}", 48)
        for path, size in (("", 512), ("/guest", 512), ("/guest/half", 256), ("/guest/nestrt/inner", 64)):
            self._limit(f"/outer{path}", size)
        self._mark("/outer", "trusted.nestrt", {"name": NAME})
        self._mark("/outer/guest/nestrt/inner", "user.nestrt", {"name": "inner", "command": ["sh", BREAK_OUT]})
        self._hold()

    @staticmethod
    def _enable(hierarchy: hostside.Hierarchy, directory: Path) -> None:
        for controller in ("memory", "pids", "cpu"):
            if controller in hierarchy.controllers:
                (directory / "cgroup.subtree_control").write_text(f"+{controller}")

    def group(self, path: str, leaf: bool = False) -> None:
        for hierarchy in hostside.hierarchies():
            directory = hierarchy.group(TOP + path)
            directory.mkdir()
            if hierarchy.version == 2 and not leaf:
                self._enable(hierarchy, directory)
            for file in ("cpuset.cpus", "cpuset.mems"):
                if hierarchy.version == 1 and (directory / file).exists():
                    (directory / file).write_text((directory.parent / file).read_text())

    @staticmethod
    def _limit(path: str, mebibytes: int) -> None:
        file = hostside.group_file("memory", TOP + path, "memory.limit_in_bytes", "memory.max")
        file.write_text(str(mebibytes * MIB))

    @staticmethod
    def _mark(path: str, attribute: str, more: dict[str, Any]) -> None:
        known = {"v": 1, "id": "an-id", "level": 1, "state": "running", "command": ["sh"], "created": 1763770000}
        for hierarchy in hostside.hierarchies():
            os.setxattr(hierarchy.group(TOP + path), attribute, json.dumps({**known, **more}).encode())

    def _hold(self) -> None:
        procs = [str(directory / "cgroup.procs") for directory in hostside.groups(f"{TOP}/outer/guest/half")]
        program = (
            f"import os, time\nfor file in {procs!r}: open(file, 'w').write(str(os.getpid()))\n"
            f"held = bytearray(b'x') * {HELD}\nprint('held', flush=True)\ntime.sleep(1000)"
        )
        self.holder = subprocess.Popen([sys.executable, "-ISc", program], stdout=subprocess.PIPE)
        assert self.holder.stdout
        assert self.holder.stdout.readline() == b"held\n"

    def remove(self) -> None:
        if self.holder:
            self.holder.kill()
            self.holder.communicate()
        for hierarchy in hostside.hierarchies():
            for directory, _, _ in os.walk(hierarchy.group(TOP), topdown=False):
                wait_for(lambda directory=directory: self._gone(directory), f"{directory!a} to be empty")  # type: ignore[misc]

    @staticmethod
    def _gone(directory: str) -> bool:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return True
        except OSError:  # EBUSY: what was killed is leaving
            return False
        return True


def attempt_groups() -> str:
    try:
        hostside.hierarchies()[0].group(TOP + "-attempt").mkdir()
    except OSError as error:
        return str(error)
    hostside.hierarchies()[0].group(TOP + "-attempt").rmdir()
    return ""


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    require("root", attempt_groups())
    made = Scene()
    try:
        made.make()
        yield made
    finally:
        made.remove()


def graph(*argv: str | os.PathLike[str]) -> Result:
    return Nestrt().run("graph", *argv)


def boxes(text: str) -> dict[str, ElementTree.Element]:
    """The boxes of an SVG by the first line of their titles."""
    root = ElementTree.fromstring(text)
    found = root.findall(f".//{SVG}svg[@role='img']")
    return {(each.findtext(f"{SVG}title") or "").partition("\n")[0]: each for each in found}


def width(element: ElementTree.Element) -> float:
    return float(element.get("width", "").removesuffix("%"))


def figures(element: ElementTree.Element) -> dict[str, str]:
    lines = (element.findtext(f"{SVG}title") or "").split("\n")[1:]
    return dict(line.partition(": ")[::2] for line in lines)


def test_the_svg_has_every_group_and_its_figures(scene: Scene) -> None:
    found = boxes(graph(NAME).ok().out)
    inner = found[f"{NAME}/inner"]
    assert (width(found[NAME]), width(found["half"]), width(inner)) == (100, 50, 12.5)
    for name in HOSTILE:
        assert width(found[escape(name)]) == pytest.approx(37.5 / len(HOSTILE), abs=0.001)
        assert found[escape(name)].get("class") == "group open"
    assert "nestrt" not in found
    assert figures(found[NAME])["memory"].endswith("%); limit 512M")
    assert figures(found["half"])["pids"].startswith("1 of ")
    told = figures(inner)
    assert (told["level"], told["state"]) == ("2", "stopped")
    assert told["memory"].endswith("limit 64M")
    assert "claim" in (inner.get("class") or "").split()
    assert told["command"] == f"sh {BREAK_OUT}"
    assert told["overcommitted"] == "limits below it add up to 2.2 times as much as it has"
    assert "over" in (inner.get("class") or "").split()
    hostile = figures(found[escape(HOSTILE[0])])
    assert hostile["memory"].endswith(f"no limit of its own, {NAME} binds")
    fill = next(each for each in found["half"].iter(f"{SVG}rect") if "fill" in (each.get("class") or ""))
    assert 58 < float(fill.get("height", "").removesuffix("%")) < 70


@pytest.mark.slow_on_vm
def test_what_is_drawn_can_be_chosen(scene: Scene) -> None:
    assert set(boxes(graph(NAME, "--depth", "0").ok().out)) == {NAME, f"{NAME}/inner", "not given"}
    by_pids = boxes(graph(NAME, "--by", "pids").ok().out)
    assert "open" in (by_pids["half"].get("class") or "")
    by_cpu = boxes(graph(NAME, "--by", "cpu", "--sample", "0.2").ok().out)
    assert figures(by_cpu["half"])["cpu"].startswith("0 of ")
    assert set(boxes(graph(NAME, "--min-share", "50").ok().out)) == {NAME, "5 more", "half", "3 more"}
    nest = Painter(Sight(walk(read_hierarchies())), "memory").nest()
    (outer,) = [each for each in nest.everyone() if each.name == NAME]
    assert dict(outer.figures)["pids"].startswith("1 of ")
    host = boxes(graph().ok().out)["host"]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert f" of {human(memory)} (" in figures(host)["memory"]
    assert figures(host)["memory"].endswith("; all that the machine has")


@pytest.mark.slow_on_vm
def test_the_file_is_replaced_and_never_what_it_points_to(scene: Scene, tmp_path: Path) -> None:
    page, picture, link, secret = (tmp_path / name for name in ("a.html", "a.SVG", "link.svg", "secret"))
    graph(NAME, "-o", page).ok()
    assert page.read_text().startswith("<!DOCTYPE html>")
    picture.write_text("before")
    before = picture.stat().st_ino
    graph(NAME, "-o", picture).ok()
    assert picture.stat().st_ino != before
    ElementTree.parse(picture)
    secret.write_text("secret")
    link.symlink_to(secret)
    for target, reason in ((link, "it is a symbolic link"), (tmp_path, "it is a directory")):
        result = graph(NAME, "-o", target)
        assert (result.rc, reason in result.err) == (2, True), result
    assert secret.read_text() == "secret"
    os.mkfifo(tmp_path / "pipe")
    assert graph(NAME, "-o", tmp_path / "pipe").rc == 2
    nowhere = graph(NAME, "-o", tmp_path / "no" / "x.svg")
    assert (nowhere.rc, len(nowhere.err.splitlines())) == (1, 1), nowhere
    assert sorted(os.listdir(tmp_path)) == ["a.SVG", "a.html", "link.svg", "pipe", "secret"]
    assert graph("no-such-guest").rc == 3
    for wrong in (["--depth", "-1"], ["--min-share", "51"], ["--min-share", "nan"], ["--sample", "inf"], ["--by", "x"]):
        result = graph(NAME, *wrong)
        assert (result.rc, "Traceback" in result.err) == (2, False), result


def test_inside_a_guest_the_whole_is_what_the_guest_has(scene: Scene) -> None:
    stamp = json.dumps({"v": 1, "name": NAME, "level": 1}).encode()
    inside = []
    for hierarchy in read_hierarchies():
        root = hierarchy.path(f"{TOP}/outer/guest")
        os.setxattr(root, "security.nestrt" if hierarchy.version == 2 else "user.nestrt", stamp)
        inside.append(Hierarchy(hierarchy.name, hierarchy.version, hierarchy.controllers, hierarchy.options, root))
    box = Painter(Sight(walk(tuple(inside))), "memory").nest()
    assert (box.kind, box.name, box.level, box.part.given) == ("level", NAME, 1, 512 * MIB)
    assert box.part.used
    assert box.part.used >= HELD
    (inner,) = box.below
    assert (inner.name, inner.level, inner.part.given) == ("inner", 2, 64 * MIB)


@pytest.mark.slow_on_vm
def test_what_has_gone_since_the_walk_is_left_out(scene: Scene) -> None:
    scene.group("/outer/guest/gone", leaf=True)
    view = walk(read_hierarchies())
    for directory in hostside.groups(f"{TOP}/outer/guest/gone"):
        directory.rmdir()
    names = {box.name for box in Painter(Sight(view), "memory").nest().everyone()}
    assert "half" in names
    assert "gone" not in names


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    require("chromium", attempt())
    with browser() as made:
        yield made


@pytest.fixture(scope="module")
def page(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("graph") / "nest.html"
    graph(NAME, "-o", path).ok()
    graph(NAME, "-o", path.with_suffix(".svg")).ok()
    return f"file://{path}"


def colour(text: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def place(chromium: Browser, name: str) -> dict[str, float]:
    """Where the box of that name is in the window, in px."""
    box = f"[...document.querySelectorAll('#chart > svg')].find((box) => box.ariaLabel.startsWith({json.dumps(name)}))"
    found: dict[str, float] = chromium.ask(f"(({box}).getBoundingClientRect()).toJSON()")
    return found


def shown(chromium: Browser) -> dict[str, str]:
    """The figures that the page shows, the name as "name"."""
    script = "[...document.querySelectorAll('#figures dt')].map((dt) => [dt.textContent, dt.nextSibling.textContent])"
    return {"name": chromium.ask("document.querySelector('#figures h2').textContent"), **dict(chromium.ask(script))}


def trail(chromium: Browser) -> list[str]:
    found: list[str] = chromium.ask("[...document.querySelectorAll('#where button')].map((step) => step.textContent)")
    return found


def drawn(chromium: Browser) -> int:
    return int(chromium.ask("document.querySelectorAll('#chart > svg').length"))


@pytest.mark.slow_on_vm
@pytest.mark.parametrize(("dark", "palette"), [(False, LIGHT), (True, DARK)], ids=["light", "dark"])
def test_a_box_is_filled_as_high_as_it_is_used(chromium: Browser, page: str, dark: bool, palette: Any) -> None:
    """Of "half" 150M and a little are used of 256M; its colours are those of the theme that the reader prefers."""
    chromium.settings(dark=dark)
    chromium.open(page)
    outer, half = place(chromium, f"{NAME};"), place(chromium, "half;")
    assert half["width"] == pytest.approx(outer["width"] / 2, abs=1)
    # At the right of the box no letter stands.
    column = pixels(chromium.picture(half["right"] - 12, half["top"], 4, half["height"]))
    colours = [row[2] for row in column]
    filled = colours.count(colour(palette.ok)) / len(colours)
    assert 0.56 < filled < 0.72, colours
    assert filled + colours.count(colour(palette.box)) / len(colours) > 0.9
    assert (colours[5], colours[-5]) == (colour(palette.box), colour(palette.ok))
    (corner,) = pixels(chromium.picture(2, 2, 1, 1))[0]
    assert corner == colour(palette.back)
    assert chromium.troubles == []


@pytest.mark.slow_on_vm
def test_a_click_zooms_and_the_pointer_shows_figures(chromium: Browser, page: str) -> None:
    chromium.settings()
    chromium.open(page)
    assert trail(chromium) == [NAME]
    all_boxes = drawn(chromium)
    inner = place(chromium, f"{NAME}/inner;")
    chromium.move(inner["left"] + 8, inner["top"] + 8)
    told = shown(chromium)
    assert (told["name"], told["level"], told["state"]) == (f"{NAME}/inner", "2", "stopped")
    assert told["command"] == f"sh {BREAK_OUT}"
    hostile = place(chromium, escape(HOSTILE[0]))
    chromium.move(hostile["left"] + 8, hostile["top"] + 8)
    assert shown(chromium)["name"] == escape(HOSTILE[0])
    chromium.click(inner["left"] + 8, inner["top"] + 8)
    assert trail(chromium) == [NAME, f"{NAME}/inner"]
    assert place(chromium, f"{NAME}/inner;")["width"] == pytest.approx(place(chromium, "a;")["width"] * 3, abs=1)
    assert drawn(chromium) == 4
    top = place(chromium, f"{NAME}/inner;")
    chromium.click(top["left"] + 8, top["top"] + 8)
    assert (trail(chromium), drawn(chromium)) == ([NAME], all_boxes)
    assert chromium.troubles == []


@pytest.mark.slow_on_vm
def test_keys_do_all_that_the_pointer_does(chromium: Browser, page: str) -> None:
    chromium.settings()
    chromium.open(page)
    for _ in range(4):
        chromium.press("Tab")
        if chromium.ask("document.activeElement.getAttribute('role')") == "treeitem":
            break
    assert chromium.ask("document.activeElement.ariaLabel").startswith(f"{NAME};")
    chromium.press("ArrowDown")
    first = shown(chromium)["name"]
    assert first != NAME
    chromium.press("Tab")
    assert shown(chromium)["name"] not in (first, NAME)
    while shown(chromium)["name"] != "half":
        chromium.press("ArrowRight")
    chromium.press("Enter")
    assert trail(chromium) == [NAME, "half"]
    assert chromium.ask("document.activeElement.ariaLabel").startswith("half;")
    chromium.press("Escape")
    assert trail(chromium) == [NAME]
    chromium.ask("document.getElementById('search').focus(); document.getElementById('search').value = 'INNER'")
    chromium.press("Enter")
    assert trail(chromium) == [NAME, f"{NAME}/inner"]
    assert chromium.ask("document.getElementById('hits').textContent") == "1 of 1"
    assert chromium.troubles == []


@pytest.mark.slow_on_vm
def test_nothing_is_run_and_nothing_is_fetched(chromium: Browser, page: str) -> None:
    chromium.settings()
    for address in (page, page.replace(".html", ".svg")):
        chromium.open(address)
        time.sleep(0.2 * SLOW)
        assert (chromium.troubles, chromium.requests) == ([], [address])
    assert chromium.ask("document.querySelectorAll('script, img').length") == 0
    chromium.open(page)
    assert chromium.ask("document.querySelectorAll('script').length") == 2
    assert chromium.ask("document.querySelectorAll('img, iframe, object, [onload], [onerror]').length") == 0
    # Were there a way in for markup, the policy would still let nothing through.
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        inject = f"<img src='{address}' onerror='window.run=1'><style>@import '{address}';</style>"
        chromium.ask(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(inject)})")
        assert chromium.ask(f"fetch({json.dumps(address)}).then(() => 'fetched', () => 'refused')") == "refused"
        with pytest.raises(TimeoutError):
            server.accept()
    assert chromium.ask("window.run === undefined")


def many(guests: int, groups: int) -> Box:
    """As many guests as a large host has, with figures as long as theirs are: 4 times as much as there is was given."""

    def box(kind: str, name: str, limit: int, used: int, below: list[Box]) -> Box:
        memory = ("memory", f"{human(used)} of {human(limit)} ({100 * used // limit}%); limit {human(limit)}")
        pids = ("pids", f"{used % 31} of {limit % 977} (9%); no limit of its own, nestrt binds")
        told = (("level", "1"), ("state", "running"), memory, pids, ("path", f"/nestrt/{name}/guest/{kind}"))
        return Box(kind, name, 1, Part(limit, limit, name, used), "running", "level 1 · running", False, told, below)

    def guest(number: int) -> Box:
        name = f"g{number:04}"
        inside = [box("group", f"c{each}", 8 * MIB, number * 4099, []) for each in range(groups)]
        return box("guest", name, 64 * MIB, number * 65003, inside)

    return box("guest", "all", guests * 16 * MIB, guests * MIB, [guest(number) for number in range(guests)])


@pytest.mark.slow_on_vm
def test_a_thousand_guests_with_ten_groups_each(chromium: Browser, tmp_path: Path) -> None:
    """| 60 more | 60 more | …, and the 60 behind a click."""
    path = tmp_path / "many.html"
    path.write_text("".join(html(place_boxes(many(1000, 10), "memory"), "all", "now", "auto", 0.01)))
    assert path.stat().st_size < 4_000_000
    chromium.settings(width=WIDTH + 40 + 320)
    took = chromium.open(f"file://{path}")
    assert took < 10 * SLOW
    assert drawn(chromium) == 18
    more = place(chromium, "60 more; first: g0060; last: g0119")
    chromium.click(more["left"] + 8, more["top"] + 8)
    assert trail(chromium) == ["all", "60 more"]
    assert place(chromium, "g0060;")["width"] == pytest.approx(WIDTH / 60, abs=0.5)
    last = place(chromium, "g0119;")
    chromium.click(last["left"] + 4, last["top"] + 8)
    assert trail(chromium) == ["all", "60 more", "g0119"]
    assert place(chromium, "c9;")["width"] == pytest.approx(WIDTH / 10, abs=0.5)
    chromium.press("Escape")
    assert trail(chromium) == ["all", "60 more"]
    assert chromium.troubles == []


BOXES = """[...document.querySelectorAll("#chart > svg")].map((box) => [
  box.getAttribute("class"), box.getAttribute("y"),
  ...["x", "width"].map((name) => parseFloat(box.getAttribute(name)).toFixed(3)),
  [...box.children].filter((each) => each.tagName === "rect").map((each) => each.getAttribute("class")).join(),
  [...box.querySelectorAll("path")].map((each) => each.getAttribute("d")).join(),
  [...box.querySelectorAll("text")].map((each) => each.textContent).join("|"),
])"""


@pytest.mark.slow_on_vm
@pytest.mark.parametrize("least", ["1", "9"])
def test_without_scripts_the_picture_and_the_figures_are_there(
    chromium: Browser, scene: Scene, tmp_path: Path, least: str
) -> None:
    """And they are the same that the script draws, where the picture is as wide as it was made for."""
    path = tmp_path / "nest.html"
    graph(NAME, "-o", path, "--min-share", least).ok()
    chromium.settings(width=WIDTH + 40 + 320, script=False)
    try:
        chromium.open(f"file://{path}")
        text = chromium.ask("document.body.innerText")
        rows = [line.split("\t") for line in text.splitlines() if line.startswith(NAME) and "\t" in line]
        assert [row[:3] for row in rows] == [[NAME, "1", "running"], [f"{NAME}/inner", "2", "stopped"]]
        assert "Find" not in text
        assert chromium.ask("document.querySelectorAll('#chart > svg > title').length") == drawn(chromium)
        plain = chromium.ask(BOXES)
        assert sum(box[0] == "bundle" for box in plain) == (3 if least == "9" else 0)
    finally:
        chromium.settings(width=WIDTH + 40 + 320)
    chromium.open(f"file://{path}")
    assert chromium.ask("document.getElementById('chart').clientWidth") == WIDTH
    assert sorted(chromium.ask(BOXES)) == sorted(plain)
    assert chromium.troubles == []
