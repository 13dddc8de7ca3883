"""Skips: only for what was tried and failed, and never where NESTRT_REQUIRE forbids them."""

from __future__ import annotations

import os

# What emulation costs: time limits are multiplied by it.
SLOW = float(os.environ.get("NESTRT_SLOW", "1"))


def required() -> frozenset[str]:
    """The capabilities named in NESTRT_REQUIRE (commas between them; ``all`` is every one)."""
    return frozenset(name.strip() for name in os.environ.get("NESTRT_REQUIRE", "").split(",") if name.strip())


def require(capability: str, problem: str | None) -> None:
    """Go on if *problem* is empty; else skip the test, or fail it where *capability* is required.

    *problem* is what a real attempt came back with, such as ``attempt_cgroup_v1()``
    or the text of an OSError; never a guess from a version.
    """
    if not problem:
        return
    import pytest  # benchmarks use this room too, and run without it

    text = f"{capability}: {problem}"
    if required() & {capability, "all"}:
        pytest.fail(f"{text} (required by NESTRT_REQUIRE)", pytrace=False)
    pytest.skip(text)
