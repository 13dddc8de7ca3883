"""What ``nestrt check`` tries from inside a guest's namespaces: writes that must be refused, and some that must not.

::

    checker                              helper, its child
    look at groups, name the trials
    fork ------------------------------> enter the guest's user, mount and cgroup namespaces
                                         a mount namespace of its own, a copy of the guest's
                                         guest root's ids, the guest's rights, and no more
                                         try; one line for each on a pipe
    read the lines, end the helper <----
    remove what it made, judge

The helper stays in the checker's own groups and pid namespace: it takes no memory, process
or CPU time of the guest, works beside one that is paused or full, and nobody in the guest
sees it. Whatever it mounts is in a mount namespace that ends with it. What it writes to a
limit file is what the file says already.
"""

from __future__ import annotations

from nestrt.record import record

# How a limit file is reached: by the guest's own mount, by that with its covers taken off, by a mount made
# afresh, and by that from a cgroup namespace that is nested in the guest's.
VIEW, UNCOVERED, FRESH, NESTED = "view", "uncovered", "fresh", "nested"
# Outcome.error where there was nothing to try: the guest has mounted something else there.
NOT_THERE = -1


@record
class Place:
    """One hierarchy. *root* and *limit* are (st_dev, st_ino) of guest root and limit group, *handle* the limit
    group's file handle, b"" where it has none.

    *fstype* and *options* mount it. *files* are limit files of the guest root, each with what is written to it: the
    value that it has, or one that it does not take. *make*: a child group is made there, *lower* written to its files,
    and *controllers* enabled for its children (v2).
    """

    name: str
    version: int
    fstype: str
    options: str
    root: tuple[int, int]
    limit: tuple[int, int]
    handle: bytes
    files: tuple[tuple[str, str], ...]
    make: bool = False
    lower: tuple[tuple[str, str], ...] = ()
    controllers: tuple[str, ...] = ()


@record
class Trials:
    """Everything to try. *child* is what the child groups are called, *rights* the capabilities of the guest's root
    as a mask. *mount*: its cgroup namespace is its own, so that a mount from there is the guest's."""

    places: tuple[Place, ...]
    child: str
    rights: int
    mount: bool


@record
class Outcome:
    """What came of one trial: *error* is 0 where the kernel let it pass, else the errno, or NOT_THERE.

    *kind* is ``enter``, ``view`` (a mount of the guest's that was not looked at), ``mount``, ``root`` (whether a new
    mount begins at the guest root), ``above`` (``..`` of it), ``write`` (*how* says by which way), ``nest`` (a further
    cgroup namespace), ``handle``, ``initial`` (the machine's first cgroup namespace by handle), ``make``, ``lower``,
    ``enable``, ``remove``, ``done``. *place* is a number in Trials.places, -1 for none; *name* a file, a mount
    point or a controller.
    """

    kind: str
    place: int
    how: str
    name: str
    error: int


@record
class Tried:
    """The outcomes; *problem* is why there are no more, "" where all was tried, *left* what could not be removed."""

    outcomes: tuple[Outcome, ...]
    problem: str
    left: tuple[str, ...]
