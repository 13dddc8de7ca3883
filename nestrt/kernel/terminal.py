"""Pseudo-terminals, pty(7), their window sizes and modes, and descriptors sent between processes.

A guest that asks for a terminal gets the slave side of a pseudo-terminal of its
own devpts, and the master comes out to be relayed. One that does not has the
launcher's descriptors 0, 1 and 2, in a session of its own: without CAP_SYS_ADMIN
over the initial user namespace it cannot type into them (TIOCSTI, ioctl_tty(2)).
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import stat
import sys
import termios
from struct import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# include/uapi/asm-generic/ioctls.h; the same on x86_64, aarch64 and riscv64.
TIOCGPTN = 0x80045430  # _IOR('T', 0x30, unsigned int)
TIOCSPTLCK = 0x40045431  # _IOW('T', 0x31, int)
TIOCGPTPEER = 0x5441  # _IO('T', 0x41)
_PTMX = os.makedev(5, 2)


def open_guest_pty(path: str = "/dev/ptmx") -> tuple[int, str]:
    """Open a new pseudo-terminal; return the master's descriptor and the slave's name in that devpts ("/dev/pts/0").

    To be called within the guest's mounts. The master is close-on-exec and the
    slave unlocked. Raises OSError: ENXIO if *path* is not the multiplexer but
    something else that the root filesystem has there, ENOSPC (no pty left).
    """
    master = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        found = os.fstat(master)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _PTMX:
            raise OSError(errno.ENXIO, "not the pseudo-terminal multiplexer", path)
        fcntl.ioctl(master, TIOCSPTLCK, pack("i", 0))
        (number,) = unpack("I", fcntl.ioctl(master, TIOCGPTN, bytes(4)))
    except OSError:
        os.close(master)
        raise
    return master, f"/dev/pts/{number}"


def open_slave(master: int) -> int:
    """Open the slave of *master*, close-on-exec, by no name: whatever is mounted at /dev/pts cannot divert it.

    ioctl_tty(2), TIOCGPTPEER, Linux 4.13. Raises OSError.
    """
    return fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def make_controlling(slave: int) -> None:
    """Begin a session with *slave* as its terminal, and as descriptors 0, 1 and 2; *slave* itself is closed.

    setsid(2), ioctl_tty(2) TIOCSCTTY. Raises OSError: EPERM if the caller leads a
    process group, or the terminal is another session's.
    """
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for descriptor in range(3):
        # Without this the copy onto itself would stay close-on-exec.
        if descriptor == slave:
            os.set_inheritable(slave, True)
        else:
            os.dup2(slave, descriptor)
    if slave > 2:
        os.close(slave)


def window_size(terminal: int) -> tuple[int, int] | None:
    """Return rows and columns of *terminal*, or None if it is not one: ioctl_tty(2), TIOCGWINSZ."""
    try:
        rows, columns, _x, _y = unpack("HHHH", fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return None
    return rows, columns


def set_window_size(terminal: int, rows: int, columns: int) -> None:
    """Set the size; its foreground processes get SIGWINCH if it is another. Raises OSError."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, pack("HHHH", rows, columns, 0, 0))


def set_raw(terminal: int) -> list[Any] | None:
    """Put *terminal* into raw mode, cfmakeraw(3), and return what ``restore`` takes; None if it is no terminal.

    A caller in the background is stopped by SIGTTOU until it comes to the
    foreground. Raises OSError: EIO if nobody is left to bring it there.
    """
    try:
        before = termios.tcgetattr(terminal)
    except termios.error:
        return None
    iflag, oflag, cflag, lflag, ispeed, ospeed, characters = termios.tcgetattr(terminal)
    iflag &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    oflag &= ~termios.OPOST
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    characters[termios.VMIN], characters[termios.VTIME] = 1, 0
    # TCSADRAIN and not TCSAFLUSH: what was typed ahead is meant for the guest.
    raw = [iflag, oflag, cflag, lflag, ispeed, ospeed, characters]
    try:
        termios.tcsetattr(terminal, termios.TCSADRAIN, raw)
    except termios.error as error:
        raise OSError(*error.args) from None
    return before


def keep_newlines(terminal: int) -> None:
    """Let \\n be \\n in what is written to *terminal*, and not \\r\\n: termios(3), ONLCR. Raises OSError."""
    try:
        modes = termios.tcgetattr(terminal)
        modes[1] &= ~termios.ONLCR
        termios.tcsetattr(terminal, termios.TCSANOW, modes)
    except termios.error as error:
        raise OSError(*error.args) from None


def restore(terminal: int, before: list[Any] | None) -> None:
    """Give *terminal* the modes that it had. One that has hung up is left alone."""
    if before is None:
        return
    try:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
    except termios.error as error:
        if error.args[0] not in (errno.EIO, errno.ENOTTY):
            raise OSError(*error.args) from None


def end_of_file(terminal: int) -> bytes:
    """Return the byte that means the end of the input on *terminal* (usually 4, ^D), none if it has none."""
    try:
        byte = termios.tcgetattr(terminal)[6][termios.VEOF]
    except termios.error:
        return b""
    return b"" if byte == b"\0" else bytes(byte)


def send_fd(socket: int, descriptor: int, data: bytes = b"\0") -> None:
    """Send *descriptor* over a Unix *socket*, along with *data*: unix(7), SCM_RIGHTS. Raises OSError."""
    end = _socket.socket(fileno=socket)
    try:
        end.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack("i", descriptor))])
    finally:
        end.detach()


def recv_fd(socket: int) -> int:
    """Receive one descriptor, close-on-exec, from a Unix *socket*.

    Raises OSError: ECONNRESET if the other side closed it without sending one,
    EBADMSG if what came is anything but exactly one descriptor.
    """
    end = _socket.socket(fileno=socket)
    try:
        data, control, flags, _address = end.recvmsg(1, _socket.CMSG_SPACE(16), _socket.MSG_CMSG_CLOEXEC)
    finally:
        end.detach()
    received: list[int] = []
    for level, kind, content in control:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            whole = len(content) // 4 * 4
            received += [int.from_bytes(content[at : at + 4], sys.byteorder) for at in range(0, whole, 4)]
    if len(received) == 1 and not flags & _socket.MSG_CTRUNC:
        return received[0]
    for descriptor in received:
        os.close(descriptor)
    if not data:
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET), "descriptor")
    raise OSError(errno.EBADMSG, f"{len(received)} descriptors and not one", "descriptor")
