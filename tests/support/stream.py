"""What a running ``nestrt events --follow --format json`` has told so far."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

from support.runner import wait_for

FIELDS = {
    "time", "kind", "name", "level", "claim", "path", "group", "key", "count", "total", "detail", "task", "pid", "uid",
    "binds", "source",
}  # fmt: skip


class Stream:
    """A running ``nestrt events --follow --format json``, which writes to a file."""

    def __init__(self, process: subprocess.Popen[bytes], file: Path) -> None:
        self.process = process
        self.file = file

    def all(self, kind: str = "", **fields: Any) -> list[dict[str, Any]]:
        """What was told so far, of a kind, and with these values: every whole line is JSON."""
        lines = self.file.read_text().split("\n")[:-1]
        found = [json.loads(line) for line in lines]
        assert all(set(event) == FIELDS for event in found)
        return [e for e in found if kind in ("", e["kind"]) and all(e[key] == value for key, value in fields.items())]

    def wait(self, kind: str, timeout: float = 30.0, **fields: Any) -> dict[str, Any]:
        """The first such event, which is to come soon."""

        def some() -> list[dict[str, Any]]:
            assert self.process.poll() is None, "it has ended"
            return self.all(kind, **fields)

        try:
            return wait_for(some, f"{kind} {fields}", timeout)[0]  # type: ignore[no-any-return]
        except AssertionError as error:
            told = "\n".join(f"{e['kind']} {e['name']} {e['path']} {e['detail'] or ''}" for e in self.all())
            raise AssertionError(f"{error}; told were:\n{told[-3000:]}") from None


def is_listening(pid: int) -> bool:
    """Whether the process catches SIGTERM: it does so once all is watched."""
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) & 1 << (signal.SIGTERM - 1))
