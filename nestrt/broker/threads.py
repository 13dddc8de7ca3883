"""Threads that may be left alone: what reads a guest's own files may never come back, and nobody is to wait for it."""

from __future__ import annotations

import inspect
from typing import Any

import trio

# Before trio 0.23 (Debian 12) the word was another. For trio.to_thread.run_sync(…, **ABANDON).
_WORDS = inspect.signature(trio.to_thread.run_sync).parameters
ABANDON: dict[str, Any] = {"abandon_on_cancel" if "abandon_on_cancel" in _WORDS else "cancellable": True}
