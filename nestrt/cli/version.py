"""The version, for people and for engines."""

VERSION = "0.2.0"
SPEC = "1.2.1"


def text() -> str:
    """What ``--version`` prints: engines read the first three lines as runc writes them."""
    return f"runc version {VERSION} (nestrt)\ncommit: nestrt-{VERSION}\nspec: {SPEC}\nnestrt: {VERSION}\n"
