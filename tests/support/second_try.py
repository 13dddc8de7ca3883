"""pytest, and what failed once more: by itself, in a new process, when all else has ended.

    python tests/support/second_try.py [OPTION]... -- DIRECTORY...

A machine that stands still for a second can fail a test of processes that meet. A test that passes then is told of
(in the file NESTRT_TALLY.flaky, which tests/run prints), its first failure stays in the output, and the exit status
is 0. No second try: for an attack (one that works once has worked), and where more than MOST_FILES fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MOST_FILES = 3


def pytest(*words: str) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *words], check=False).returncode


def worth_it(failed: list[str]) -> bool:
    """Whether the node ids *failed* get a second try."""
    files = {node.split("::")[0] for node in failed}
    return 0 < len(files) <= MOST_FILES and not any(file.startswith("tests/security/") for file in files)


def main(words: list[str]) -> int:
    options, directories = words[: words.index("--")], words[words.index("--") + 1 :]
    tally = Path(os.environ["NESTRT_TALLY"])
    # Written by tests/conftest.py: a line for each failure, two for a test that fails in its clean-up too.
    failures = Path(f"{tally}.failed")
    failures.unlink(missing_ok=True)
    status = pytest(*options, *directories)
    failed = failures.read_text().splitlines() if failures.exists() else []
    if status != 1 or not worth_it(failed):
        return status
    print(f"=== second try of {len(set(failed))}", flush=True)
    status = pytest(*options, "--shard", "1/1", *dict.fromkeys(failed))
    with open(tally, "a") as file:
        file.write(f"0 {-len(failed)} 0\n")
    if status == 0:
        with open(f"{tally}.flaky", "a") as file:
            file.write("".join(f"{node}\n" for node in dict.fromkeys(failed)))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
