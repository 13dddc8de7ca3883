"""Attributes of the calling process: prctl(2), and the session keyring, keyctl(2).

Every function raises OSError with the errno of the man page, unless it says otherwise.
"""

from __future__ import annotations

import ctypes
import errno

from nestrt.kernel.libc import SYS_keyctl, check, libc, syscall

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39

KEYCTL_JOIN_SESSION_KEYRING = 1


def prctl(option: int, *arguments: int, obj: str = "") -> int:
    """prctl(2) with up to four arguments, the others 0: many options refuse anything else there."""
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return check(libc.prctl(ctypes.c_int(option), *values), obj)


def set_no_new_privs() -> None:
    """From now on execve(2) grants nothing: no set-user-ID, no file capabilities. Cannot be undone."""
    prctl(PR_SET_NO_NEW_PRIVS, 1, obj="no_new_privs")


def no_new_privs() -> bool:
    return prctl(PR_GET_NO_NEW_PRIVS) == 1


def set_keep_capabilities(keep: bool) -> None:
    """Whether the permitted set survives the change from uid 0 to others; execve(2) clears this."""
    prctl(PR_SET_KEEPCAPS, int(keep), obj="keep_caps")


def set_dumpable(dumpable: bool) -> None:
    """Whether others of the same user may trace the process and read its /proc files; execve(2) resets this."""
    prctl(PR_SET_DUMPABLE, int(dumpable), obj="dumpable")


def dumpable() -> bool:
    return prctl(PR_GET_DUMPABLE) == 1


def set_parent_death_signal(signal: int) -> None:
    """Have *signal* sent to this process when the thread that made it ends; 0 for none.

    A parent that has ended already sends nothing: compare getppid(2) afterwards.
    Cleared by a change of user or capabilities, and by fork(2).
    """
    prctl(PR_SET_PDEATHSIG, signal, obj="parent death signal")


def new_session_keyring(name: str = "") -> bool:
    """Leave the session keyring of whoever started the process for a new one; return whether it worked.

    keyctl(2), KEYCTL_JOIN_SESSION_KEYRING. False where the kernel has no keyrings
    (ENOSYS), a filter forbids them (EPERM, EACCES) or the user's quota is used up
    (EDQUOT): the guest then cannot be given a keyring of its own, and its
    credentials do not reach the old one's keys unless they are the owner's.
    """
    # A named keyring is joined if it exists, and another guest's might: without a name it is always new.
    text = ctypes.c_char_p(name.encode()) if name else ctypes.c_char_p(None)
    try:
        syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, text, obj="session keyring")
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EDQUOT):
            return False
        raise
    return True
