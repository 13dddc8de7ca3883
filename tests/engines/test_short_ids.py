"""podman's and docker's guests by what ``podman ps`` and ``docker ps`` print of their ids, and by a name's id.

::

    engine ── ps ──▶ twelve digits ──▶ nestrt show, ps, exec, kill …
           ── inspect -f {{.Id}} NAME ──▶ all 64
"""

from __future__ import annotations

from support.engine_guests import Start, every, sleepers
from support.hostside import processes
from support.runner import wait_for


@every("podman", "docker")
def test_what_the_engine_prints_names_its_guest(start: Start) -> None:
    guest = start("--name", "web")
    pids = sleepers(guest)
    (short,) = guest.engine("ps", "-q").ok().out.split()
    assert len(short) == 12
    assert len(guest.name) == 64
    for word in (short, short[:8], guest.engine("inspect", "-f", "{{.Id}}", "web").ok().out.strip()):
        found = guest.json("show", word)
        assert (found["name"], found["path"], found["claim"]) == (guest.name, guest.group, False)
        assert {row["pid"] for row in guest.json("ps", word)} == set(pids)
        assert guest.json("why", f"{word}:/init", "memory.max")["guest"] == guest.name
    assert guest.nestrt("exec", short, "cat", "/proc/1/cmdline").ok().out == "sleep\x004000\x00"
    # What the engine calls it besides is known to the engine alone.
    gone = guest.nestrt("show", "web")
    assert (gone.rc, gone.err.count("\n")) == (3, 1), gone
    guest.nestrt("freeze", short).ok()
    assert guest.json("show", short)["state"] == "paused"
    guest.nestrt("thaw", short).ok()
    guest.nestrt("kill", short).ok()
    wait_for(lambda: not processes(guest.group), "its end")
