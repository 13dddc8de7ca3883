"""What an update of a guest that another runtime has started tells besides: its record, and systemd where that has made
its scope. Without it an engine's next update, or systemd's next write, would bring old limits back."""

from __future__ import annotations

from nestrt import jsontext
from nestrt.act import records
from nestrt.cli import update as verb
from nestrt.controllers.update import merge
from nestrt.errors import NestrtError
from nestrt.level.limits import over
from nestrt.level.units import MAX
from nestrt.oci.document import load_resources
from nestrt.oci.resources import DeviceRule as Ordered
from nestrt.plan.change import resources_of
from nestrt.plan.update import as_json, taken_back
from nestrt.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nestrt.act.containers import Container
    from nestrt.act.records import Record
    from nestrt.level.devices import DeviceRule
    from nestrt.level.limits import Limits
    from nestrt.oci.resources import Resources
    from nestrt.plan.facts import Hierarchy


def _ordered(rules: tuple[DeviceRule, ...] | None) -> tuple[Ordered, ...] | None:
    if rules is None:
        return None
    return (Ordered(False), *(Ordered(True, r.type, r.major, r.minor, r.access) for r in rules))


def _whole(limits: Limits) -> Resources:
    unlimited = limits.memory in (None, MAX)
    return resources_of(replace(limits, swap=None) if unlimited and limits.swap != MAX else limits)


class Recorded:
    """The record of a guest, locked; of a guest without one nothing is done."""

    def __init__(self, name: str, subject: Container, hierarchies: tuple[Hierarchy, ...]) -> None:
        """Raises StateError where the guest is being made or removed."""
        self.record: Record | None = records.open_record(name) if name else None
        self.subject = subject
        self.hierarchies = hierarchies
        self.unit = self.record.text("unit") if self.record else ""
        if self.unit:
            subject.document.update(driver="systemd", unit=self.unit)

    def tell_systemd(self, had: Limits, new: Limits, rules: tuple[DeviceRule, ...] | None) -> Resources:
        """What the groups are to get of *new* once systemd knows it: a quota may be another there. NestrtError."""
        wanted = resources_of(new)
        if not self.unit:
            return wanted
        return verb.systemd(self.subject, self.hierarchies, _whole(over(had, new)), wanted, _ordered(rules))

    def take_back(self, had: Limits, new: Limits, rules: tuple[DeviceRule, ...] | None) -> None:
        """Tell systemd what it was told before; *rules* are those of before where they were to change."""
        if self.unit:
            old = _whole(had)
            verb.systemd(self.subject, self.hierarchies, taken_back(old, resources_of(new)), old, _ordered(rules))

    def keep(self, new: Limits) -> None:
        """Have the engine's next update begin with *new*. Raises OSError."""
        if self.record is None:
            return
        try:
            known = self.record.values.get("resources") or self._document()
            had = load_resources(jsontext.dumps(known), f"record {self.record.name}")
        except (NestrtError, OSError, ValueError):
            return  # of a runtime that has no document
        self.record.values["resources"] = as_json(merge(had, resources_of(new)))
        self.record.save()

    def _document(self) -> object:
        assert self.record is not None
        path = self.record.text("config") or f"{self.record.text('bundle')}/config.json"
        with open(path, "rb") as file:
            document = jsontext.loads(file.read(verb.FILE_LIMIT << 4).decode())
        linux = document.get("linux") if isinstance(document, dict) else None
        return (linux.get("resources") if isinstance(linux, dict) else None) or {}

    def close(self) -> None:
        if self.record is not None:
            self.record.close()
