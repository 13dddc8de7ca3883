"""The words of a mount's options, one by one and together."""

from __future__ import annotations

import pytest

from nestrt.plan import mount_options as o
from nestrt.plan.mount_options import Options, parse_options


# Every word of runtime-spec 1.2, config.md, "Linux mount options", is known, and none is taken for data.
@pytest.mark.parametrize(
    "word",
    """async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev nodiratime
    noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev
    rdiratime relatime remount rexec rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid
    rnosymfollow ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared
    silent slave strictatime suid symfollow sync tmpcopyup unbindable idmap ridmap""".split(),
)
def test_every_word_is_known(word: str) -> None:
    options = parse_options((word,))
    assert options.data == ()
    assert word in o.KNOWN
    assert options != Options() or word == "defaults"


# What a word sets, its opposite takes back, and the later of the two holds.
@pytest.mark.parametrize(
    ("on", "off", "attribute"),
    [
        ("ro", "rw", o.ATTR_RDONLY),
        ("nosuid", "suid", o.ATTR_NOSUID),
        ("nodev", "dev", o.ATTR_NODEV),
        ("noexec", "exec", o.ATTR_NOEXEC),
        ("nosymfollow", "symfollow", o.ATTR_NOSYMFOLLOW),
        ("nodiratime", "diratime", o.ATTR_NODIRATIME),
    ],
)
def test_opposites(on: str, off: str, attribute: int) -> None:
    options = parse_options((on,))
    assert (options.attributes, options.clears, options.changes) == (attribute, 0, True)
    options = parse_options((on, off))
    assert (options.attributes, options.clears, options.changes) == (0, attribute, True)
    options = parse_options((off, on))
    assert (options.attributes, options.clears) == (attribute, 0)
    options = parse_options((f"r{on}",))
    assert (options.rec_set, options.rec_clear, options.attributes) == (attribute, 0, 0)
    options = parse_options((f"r{on}", f"r{off}"))
    assert (options.rec_set, options.rec_clear) == (0, attribute)


# Access times are one value: what sets one clears the whole field first (mount_setattr(2)).
@pytest.mark.parametrize(
    ("words", "attributes", "clears"),
    [
        ("noatime", o.ATTR_NOATIME, o.ATTR_ATIME),
        ("strictatime", o.ATTR_STRICTATIME, o.ATTR_ATIME),
        ("relatime", 0, o.ATTR_ATIME),
        ("noatime,atime", 0, o.ATTR_ATIME),
        ("noatime,strictatime", o.ATTR_STRICTATIME, o.ATTR_ATIME),
        ("nosuid", o.ATTR_NOSUID, 0),
    ],
)
def test_access_times(words: str, attributes: int, clears: int) -> None:
    options = parse_options(tuple(words.split(",")))
    assert (options.attributes, options.clears) == (attributes, clears)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("rnoatime", o.ATTR_NOATIME),
        ("rnoatime,rrelatime", 0),
        ("rnoatime,rstrictatime", o.ATTR_STRICTATIME),
        ("rnoatime,ratime", 0),
    ],
)
def test_access_times_of_a_tree(words: str, value: int) -> None:
    options = parse_options(tuple(words.split(",")))
    assert (options.rec_set, options.rec_clear) == (value, o.ATTR_ATIME)


# A podman bind, a devpts, and a word with an equals sign and commas in its value.
def test_together() -> None:
    options = parse_options(("rbind", "rprivate", "ro", "nosuid", "idmap"))
    assert options.bind
    assert options.recursive
    assert options.read_only
    assert options.propagation == (o.MS_PRIVATE | o.MS_REC,)
    assert options.idmap == "idmap"
    options = parse_options(("nosuid", "newinstance", "mode=0620", "context=a:b,c", "", "sync", "lazytime"))
    assert options.data == ("newinstance", "mode=0620", "context=a:b,c")
    assert options.superblock == ("sync", "lazytime")
    assert not options.bind
    # A bind without a word on flags has its source's.
    assert not parse_options(("rbind", "rslave", "defaults")).changes
    assert parse_options(("rbind", "rw")).changes
