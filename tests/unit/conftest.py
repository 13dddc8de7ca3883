"""How hypothesis searches: without a clock, for the machine may be busy, and in CI the same examples each time."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "nestrt",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
    derandomize=not os.environ.keys().isdisjoint(("CI", "NESTRT_REQUIRE")),
)
settings.load_profile("nestrt")
