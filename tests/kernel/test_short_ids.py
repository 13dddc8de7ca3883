"""Guests that an engine has called by 64 digits, named by the first twelve, in every command that takes a name.

::

    /nestrt-oci-t-…/ID        limit group of ID, a guest of the host
                     └ guest
                        ├ init       its first process
                        └ job        a group of its own
    /nestrt-test-short-PID/…  by hand: guests of the host, claims in them, and a user's claim beside them
"""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nestrt.host.sight import find
from nestrt.host.walk import walk, walk_to
from nestrt.probe.facts import primary, read_hierarchies
from support.bundles import Bundle
from support.byhand import make_group, remove_groups
from support.hostside import groups, processes, read
from support.hostside import hierarchies as host_hierarchies
from support.need import SLOW
from support.runner import Nestrt, wait_for
from support.stream import is_listening

NewBundle = Callable[..., Bundle]
TOP = f"/nestrt-test-short-{os.getpid()}"
NOBODY = 65534
STATE_ROOT = Path("/run/nestrt/oci")


def new_id(beginning: str = "") -> str:
    """As an engine makes one; never all decimal in its beginning."""
    return (beginning or "e" + secrets.token_hex(6)[1:]) + secrets.token_hex(32)[: 64 - (len(beginning) or 12)]


def document(nestrt: Nestrt, *words: str) -> Any:
    return json.loads(nestrt.run(*words, "--format", "json", timeout=60).ok().out)


# Commands that look, each with the first digits alone.
@pytest.mark.slow_on_vm
def test_what_looks_at_a_guest(nestrt: Nestrt, new_bundle: NewBundle) -> None:
    id = new_id()
    short = id[:12]
    bundle = new_bundle(id).virtual().up()
    for directory in groups(f"{bundle.cgroup}/guest"):
        (directory / "job").mkdir()
    before = nestrt.run("show", id).ok().out
    found = document(nestrt, "show", short)
    assert (found["name"], found["path"], found["claim"]) == (id, bundle.cgroup, False)
    assert nestrt.run("show", id[:-1]).ok().out.splitlines()[0] == before.splitlines()[0]
    assert [one["name"] for one in document(nestrt, "ls", short)] == [id]
    assert [one["name"] for one in document(nestrt, "tree", short)["guests"]] == [id]
    (part,) = document(nestrt, "tree", f"{short}:/job")["guests"]
    assert [one["path"] for one in part["groups"]] == [bundle.cgroup, f"{bundle.cgroup}/guest/job"]
    for subject, group in ((short, "/guest"), (f"{short}:/job", "/guest/job")):
        answer = document(nestrt, "why", subject)
        assert (answer["guest"], answer["group"]) == (id, bundle.cgroup + group)
    assert {row["guest"] for row in document(nestrt, "ps", short)} == {id}
    assert {row["guest"] for row in document(nestrt, "ps", "--guest", short)} == {id}
    assert [row["name"] for row in document(nestrt, "top", "-b", "-n", "1", short)] == [id]
    assert f'guest="{id}"' in nestrt.run("metrics", short).ok().out
    assert f"<title>{id}\n" in nestrt.run("graph", short).ok().out
    assert [row["name"] for row in document(nestrt, "check", "--passive", short)] == [id]
    assert [row["name"] for row in document(nestrt, "events", "--totals", short)] == [id]
    started = [json.loads(line) for line in nestrt.run("events", short, "--format", "json").ok().out.splitlines()]
    assert {(row["kind"], row["name"]) for row in started} == {("started", id)}
    names = nestrt.run("guest", "--of", short, "ls").ok().out
    assert names == nestrt.run("guest", "--of", id, "ls").ok().out
    assert "job" in names
    for words in (("show",), ("tree",), ("why",), ("top", "-b", "-n", "1")):
        gone = nestrt.run(*words, "e" + "0" * 11)
        assert (gone.rc, gone.err.count("\n")) == (3, 1), gone
        assert "guest e00000000000: there is no such guest" in gone.err


# And those that change it.
def test_what_changes_a_guest(nestrt: Nestrt, new_bundle: NewBundle) -> None:
    id = new_id()
    short = id[:12]
    bundle = new_bundle(id).virtual().user_namespace().resources(pids={"limit": 90}).up()
    nestrt.run("update", short, "--pids", "70").ok()
    assert document(nestrt, "show", short)["pids"]["limit"] == 70
    nestrt.run("freeze", short).ok()
    assert bundle.status == "paused"
    nestrt.run("thaw", short).ok()
    assert bundle.status == "running"
    assert nestrt.run("exec", short, "cat", "/proc/1/cmdline").ok().out == "sleep\x00600\x00"
    nestrt.run("lock", short).ok()
    assert document(nestrt, "show", id)["locked"]
    nestrt.run("unlock", short).ok()
    assert not document(nestrt, "show", id)["locked"]
    nestrt.run("kill", short).ok()
    wait_for(lambda: not processes(bundle.cgroup), "its end")


def test_of_two_neither_is_taken(nestrt: Nestrt, new_bundle: NewBundle) -> None:
    short = "e" + secrets.token_hex(6)[1:]
    first, second = sorted(new_id(short) for _ in range(2))
    for id in (first, second):
        new_bundle(id).virtual().up()
    for words in ("show", "tree", "ls", "why", "kill", "freeze", "lock", "ps", "guest --of"):
        more = ("ls",) if words[0] == "g" else ()
        done = nestrt.run(*words.split(), short, *more)
        assert (done.rc, done.out, done.err.count("\n")) == (2, "", 1), done
        assert f"2 ids begin so; say {first} or {second}" in done.err, done
    assert nestrt.run("show", first).ok()
    assert len(document(nestrt, "ls", first, second)) == 2


# A container of this runtime's own state: the beginning means what the whole id does, and not the host's form.
def test_a_container_of_this_runtime(nestrt: Nestrt, new_bundle: NewBundle) -> None:
    id = new_id()
    bundle = new_bundle(id, state=STATE_ROOT).virtual().up("trap : USR1 TERM; while :; do sleep 0.05; done")
    for word in (id, id[:12]):
        assert json.loads(nestrt.run("ps", "--format", "json", word).ok().out)[0] == bundle.pid
    assert nestrt.run("exec", "--env", "X=12", id[:12], "sh", "-c", "echo $X").ok().out == "12\n"
    nestrt.run("update", "--pids-limit", "33", id[:12]).ok()
    assert document(nestrt, "show", id)["pids"]["limit"] == 33
    # SIGTERM for the first process, where the host's form would kill all there is.
    nestrt.run("kill", id[:12]).ok()
    assert bundle.status == "running"
    # Verbs that only the runtime has know ids, as runc does.
    for verb in ("state", "pause", "delete"):
        assert nestrt.run(verb, id[:12]).rc != 0, verb
    nestrt.run("kill", "--signal", "KILL", id[:12]).ok()
    wait_for(lambda: bundle.status == "stopped", "its end")


# By hand:
#
#   TOP/host     ID, the host's
#   TOP/web      web-PID, the host's
#    └ guest/nestrt/N    claims: called ID, as ID begins, or so that its beginning is of two
#   TOP/user     a user's claims, called as those
@contextmanager
def marked(places: dict[str, tuple[str, str, int]]) -> Iterator[None]:
    """Groups below TOP with marks: {path: (attribute, name, owner)}."""
    first = primary(read_hierarchies()).mountpoint
    make_group(TOP)
    try:
        for path, (attribute, name, owner) in places.items():
            parts = path.split("/")
            for end in range(1, len(parts) + 1):
                group = f"{TOP}/{'/'.join(parts[:end])}"
                if not groups(group):
                    make_group(group)
            make_group(f"{TOP}/{path}/guest")
            for hierarchy in host_hierarchies():
                directory = hierarchy.group(f"{TOP}/{path}")
                short = {"v": 1, "name": name, "id": "x"}
                more = {"state": "running", "command": []} if str(hierarchy.mountpoint) == first else {}
                os.setxattr(directory, attribute, json.dumps({**short, **more}).encode())
                os.chown(directory, owner, owner)
        yield
    finally:
        remove_groups(TOP)


@pytest.mark.parametrize(
    "trick", ["same", *(pytest.param(one, marks=pytest.mark.slow_on_vm) for one in ("beginning", "like", "shortest"))]
)
@pytest.mark.parametrize("place", ["web/guest/nestrt/evil", "user"])
def test_no_claim_is_taken_for_the_hosts_guest(nestrt: Nestrt, place: str, trick: str) -> None:
    id = new_id()
    name = {"same": id, "beginning": id[:12], "like": new_id(id[:12]), "shortest": id[:4]}[trick]
    places = {
        "host": ("trusted.nestrt", id, 0),
        "web": ("trusted.nestrt", f"web-{os.getpid()}", 0),
        place: ("user.nestrt", name, NOBODY),
    }
    hierarchies = read_hierarchies()
    with marked(places):
        for word in (id[:12], id[:4]):
            for view in (walk_to(hierarchies, [word]), walk(hierarchies)):
                assert find(view, word).path == f"{TOP}/host"
            assert document(nestrt, "show", word)["path"] == f"{TOP}/host"
            assert document(nestrt, "why", word)["group"] == f"{TOP}/host/guest"
            assert [row["path"] for row in document(nestrt, "top", "-b", "-n", "1", word)] == [f"{TOP}/host"]
            rows = document(nestrt, "events", "--totals", word)
            assert [row["path"] for row in rows if row["name"] != name or not row["claim"]] == [f"{TOP}/host"]
        nestrt.run("update", id[:12], "--pids", "33").ok()
        assert read("pids", f"{TOP}/host", "pids.max", "pids.max") == "33"
        assert read("pids", f"{TOP}/{place}", "pids.max", "pids.max") == "max"
        # It has a name of its own, or a path.
        if place != "user":
            assert document(nestrt, "show", f"web-{os.getpid()}/{name[:12]}")["claim"]


# Only the guest that is meant is looked into, as with its whole name.
def test_a_beginning_leads_to_its_guest_alone(nestrt: Nestrt) -> None:
    id = new_id()
    places = {"host": ("trusted.nestrt", id, 0), "other": ("trusted.nestrt", f"web-{os.getpid()}", 0)}
    hierarchies = read_hierarchies()
    with marked(places):
        for name in (id[:12], f"{id[:12]}:/x", f"{id[:12]}/db", id):
            view = walk_to(hierarchies, [name])
            seen = {guest.path: len(guest.groups) for guest in view.guests if guest.path.startswith(TOP)}
            assert seen == {f"{TOP}/host": 1, f"{TOP}/other": 0}, name


# The record of one that has gone: its own, and not that of a claim which has come since.
def test_events_of_one_that_has_ended(nestrt: Nestrt, tmp_path: Path) -> None:
    id, other = (new_id() for _ in range(2))
    like = new_id(id[:12])
    place = tmp_path / "events"
    command = nestrt.start("events", "--follow", "--record", os.fspath(place), "--directory", os.fspath(place))
    try:
        wait_for(lambda: is_listening(command.pid), "everything to be watched", 40)
        with marked({"host": ("trusted.nestrt", id, 0), "other": ("trusted.nestrt", other, 0)}):
            for one in (id, other):
                wait_for((place / f"{one}.jsonl").exists, "the guest to be noticed", 20)
    finally:
        command.send_signal(signal.SIGTERM)
        command.wait(20 * SLOW)
    words = ("events", "--directory", os.fspath(place), "--format", "json", id[:12])
    with marked({"user": ("user.nestrt", like, NOBODY)}):
        rows = [json.loads(line) for line in nestrt.run(*words).ok().out.splitlines()]
    assert rows
    assert {row["name"] for row in rows} == {id}
