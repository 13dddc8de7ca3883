"""A container of this runtime that the broker has changed: its state file says so, and its own update begins there."""

from __future__ import annotations

import os

from nestrt import jsontext
from nestrt.act import containers
from nestrt.act.remove import read_mark
from nestrt.act.update import known
from nestrt.act.update_devices import PROGRAM
from nestrt.broker.device_rules import known_program
from nestrt.broker.own_rules import chosen
from nestrt.controllers.update import merge
from nestrt.errors import NestrtError
from nestrt.host.marks import TRUSTED
from nestrt.oci.document import load_resources
from nestrt.oci.resources import DeviceRule as Ordered
from nestrt.plan.update import as_json
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.broker.device_rules import Rules
    from nestrt.broker.served import Served
    from nestrt.oci.resources import Resources

PATIENCE = 10.0  # seconds that another verb may have the container


def follow(guest: Served, new: Resources, rules: Rules | None) -> None:
    """Write *new*, and the whole list of device *rules* where they have changed. What is no container stays alone.

    Waits: for a thread. Where its state cannot be had nothing is written: then its next update is by what it had.
    """
    directory = read_mark(guest.primary, guest.limit).get("directory")
    if guest.known.attribute != TRUSTED or not isinstance(directory, str):
        return
    root, _, id = directory.rpartition("/")
    try:
        lock = containers.lock(directory, PATIENCE)
    except OSError:
        return
    try:
        container = containers.load(root, id)
        if container.cgroup != guest.limit:
            return
        had = load_resources(jsontext.dumps(known(container)[0]), f"container {id}")
        if rules is not None:
            ordered = (Ordered(True, r.type, r.major, r.minor, r.access) for r in rules)
            new = replace(new, devices=(Ordered(False), *ordered))
            hierarchy = chosen(guest.hierarchies)
            if hierarchy.version == 2:
                container.document[PROGRAM] = known_program(hierarchy.path(guest.limit)) or 0
        container.document["resources"] = as_json(merge(had, new))
        container.save()
    except (OSError, NestrtError):
        return
    finally:
        os.close(lock)
