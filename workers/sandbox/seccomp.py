"""Which system calls a child may make, as a BPF program for seccomp: one table and a small assembler.

It is written by hand because libseccomp would need a library of the system. It lists what is refused, not what is
allowed: torch's libraries use a few hundred calls for threads, memory and files, and which ones differs between
machines; the calls that a model never needs are few and stable. Three answers (seccomp(2)):

    refused calls       wait for the fork server, which reads the call's number, reports it and kills the child; the few
                        that libraries try when they are imported (``PROBED``) fail with EPERM instead
    ``clone3``          fails with ENOSYS, so that libc falls back to ``clone``, whose flags a filter can read
    another machine's   kill the process: 32-bit and x32 calls have other numbers, so the table would be wrong for them
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Iterable, Sequence

from store.parent_death import PR_SET_PDEATHSIG

_ON_BOTH = {  # since Linux 5.1 new calls have one number everywhere
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "memfd_secret": 447,
    "process_mrelease": 448,
}  # fmt: skip
_NEWEST = 451  # cachestat (Linux 6.5): later calls were not reviewed, and do not exist for a child
# name: (x86_64, aarch64), from asm/unistd_64.h and asm-generic/unistd.h
_REFUSED: dict[str, tuple[int, int]] = {
    # other programs, other processes
    "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "kcmp": (312, 272), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setsid": (112, 157), "setpgid": (109, 154), "setrlimit": (160, 164),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    # networks
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    # shared between processes
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semctl": (66, 191),
    "semop": (65, 193), "semtimedop": (220, 192), "msgget": (68, 186), "msgctl": (71, 187), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "mq_open": (240, 180), "mq_unlink": (241, 181), "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),  # reveals the names of files that others create
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    # mounts
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "mknodat": (259, 33),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "fanotify_init": (300, 262),
    "swapon": (167, 224), "swapoff": (168, 225), "quotactl": (179, 60), "acct": (163, 89),
    # identity and rights
    "unshare": (272, 97), "setns": (308, 268), "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145),
    "setregid": (114, 143), "setresuid": (117, 147), "setresgid": (119, 149), "setgroups": (116, 159),
    "setfsuid": (122, 151), "setfsgid": (123, 152), "capset": (126, 91), "personality": (135, 92),
    # the kernel
    "bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241), "seccomp": (317, 277),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161),
    "setdomainname": (171, 162),
}  # fmt: skip
_ONLY_X86 = {"fork": 57, "vfork": 58, "mknod": 133, "iopl": 172, "ioperm": 173, "modify_ldt": 154, "uselib": 134,
             "inotify_init": 253}  # fmt: skip
# What Landlock does not cover: modes, owners, times and attributes of any file by its path. And memory that belongs to
# no process, which neither ``RLIMIT_AS`` nor the watcher would count.
_DENIED: dict[str, tuple[int, int]] = {
    "fchmod": (91, 52), "fchmodat": (268, 53), "fchown": (93, 55), "fchownat": (260, 54), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "memfd_create": (319, 279),
}  # fmt: skip
_DENIED_X86 = {"chmod": 90, "chown": 92, "lchown": 94, "utime": 132, "utimes": 235, "futimesat": 261}
_WITH_ARGUMENTS = {"clone": (56, 220), "kill": (62, 129), "tgkill": (234, 131), "prctl": (157, 167),
                   "prlimit64": (302, 261), "fcntl": (72, 25), "sched_setaffinity": (203, 122)}  # fmt: skip
# Imports try these and can do without: urllib3 asks for IPv6, a profiler for counters.
PROBED = frozenset({"socket", "socketpair", "perf_event_open"})
_CLONE3, _X32_BIT = 435, 0x40000000
_CLONE_THREAD = 0x00010000
_OWN_AND_SIGNAL = (8, 10, 15)  # linux/fcntl.h: F_SETOWN, F_SETSIG, F_SETOWN_EX, by which a file sends signals

# linux/audit.h, linux/seccomp.h, linux/bpf_common.h
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_SECCOMP_CALL = {"x86_64": 317, "aarch64": 277}
_NR, _ARCH, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _ANSWER = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _NOTIFY, _ERRNO, _KILL = 0x7FFF0000, 0x7FC00000, 0x00050000, 0x80000000
_SET_MODE_FILTER, _ACTION_AVAILABLE = 1, 2
_TSYNC, _NEW_LISTENER, _TSYNC_ESRCH = 1 << 0, 1 << 3, 1 << 4
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif: id, pid, flags, then seccomp_data: nr, arch, ip, ...
_RESPONSE = struct.Struct("=QqiI")  # struct seccomp_notif_resp: id, value, error, flags
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, _SEND

Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def machine() -> str:
    return platform.machine()


def available() -> bool:
    """Whether this kernel has seccomp with a listener (Linux 5.0), on a machine of the table."""
    call = _SECCOMP_CALL.get(machine())
    action = ctypes.c_uint32(_NOTIFY)
    return call is not None and _libc().syscall(call, _ACTION_AVAILABLE, 0, ctypes.byref(action)) == 0


def refused() -> dict[int, str]:
    """Number and name of every call that is refused on this machine, whatever its arguments."""
    return _by_number(_REFUSED, _ONLY_X86) | {number: name for name, number in _ON_BOTH.items()}


def denied() -> dict[int, str]:
    """Number and name of every call that only fails on this machine."""
    return _by_number(_DENIED, _DENIED_X86)


def _by_number(calls: dict[str, tuple[int, int]], only_x86: dict[str, int]) -> dict[int, str]:
    column = _ARCHITECTURES[machine()][1]
    extra = only_x86 if column == 0 else {}
    return {numbers[column]: name for name, numbers in calls.items()} | {number: name for name, number in extra.items()}


def call_name(number: int) -> str:
    """The name of a system call, for messages."""
    return (refused() | denied() | _by_number(_WITH_ARGUMENTS, {})).get(number, f"number {number}")


def program(pid: int) -> list[Instruction]:
    """The filter for process ``pid``: code, jump if true, jump if false, operand (struct sock_filter)."""
    architecture, column = _ARCHITECTURES[machine()]
    clone, kill, tgkill, prctl, prlimit, fcntl, affinity = (numbers[column] for numbers in _WITH_ARGUMENTS.values())
    return [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, architecture),
        (_ANSWER, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
        (_AT_LEAST, 0, 1, _X32_BIT),
        (_ANSWER, 0, 0, _KILL),
        (_AT_LEAST, 0, 1, _NEWEST + 1),
        (_ANSWER, 0, 0, _ERRNO | errno.ENOSYS),
        *_answer_calls(refused(), _NOTIFY),
        *_answer_calls(denied(), _ERRNO | errno.EPERM),
        *_answer_calls([_CLONE3], _ERRNO | errno.ENOSYS),
        *_by_argument(clone, 0, _ANY_BIT, [_CLONE_THREAD], yes=_ALLOW, no=_NOTIFY),  # threads yes, processes no
        *_by_argument(kill, 0, _EQUAL, [pid], yes=_ALLOW, no=_NOTIFY),  # abort() and the like
        *_by_argument(tgkill, 0, _EQUAL, [pid], yes=_ALLOW, no=_NOTIFY),
        *_by_argument(prctl, 0, _EQUAL, [PR_SET_PDEATHSIG], yes=_NOTIFY, no=_ALLOW),  # a child must die with its server
        *_by_argument(fcntl, 1, _EQUAL, _OWN_AND_SIGNAL, yes=_NOTIFY, no=_ALLOW),
        *_by_argument(affinity, 0, _EQUAL, [0], yes=_ALLOW, no=_NOTIFY),  # OpenMP may pin its own threads
        (_EQUAL, 0, 6, prlimit),  # libc asks for limits; a root user's child could raise them
        (_LOAD, 0, 0, _ARGUMENT + 16),
        (_EQUAL, 0, 2, 0),
        (_LOAD, 0, 0, _ARGUMENT + 20),
        (_EQUAL, 1, 0, 0),
        (_ANSWER, 0, 0, _NOTIFY),
        (_ANSWER, 0, 0, _ALLOW),
        (_ANSWER, 0, 0, _ALLOW),
    ]


def _answer_calls(numbers: Iterable[int], answer: int) -> list[Instruction]:
    """The same answer for all of these calls."""
    return [step for number in sorted(numbers) for step in ((_EQUAL, 0, 1, number), (_ANSWER, 0, 0, answer))]


def _by_argument(
    number: int, place: int, test: int, operands: Sequence[int], *, yes: int, no: int
) -> list[Instruction]:
    """An answer by the low half of one argument: ``yes`` if the test holds for any of the operands."""
    left = range(len(operands), 0, -1)
    return [
        (_EQUAL, 0, len(operands) + 3, number),
        (_LOAD, 0, 0, _ARGUMENT + 8 * place),
        *((test, after, 0, operand) for after, operand in zip(left, operands, strict=True)),
        (_ANSWER, 0, 0, no),
        (_ANSWER, 0, 0, yes),
    ]


def enter(listener_to: int) -> None:
    """Filter every thread of this process from now on. The listener, on which refused calls arrive, is sent through the
    socket ``listener_to``. ``no_new_privs`` has to be set. Raises ``OSError``."""
    code = b"".join(struct.pack("=HBBI", *step) for step in program(os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    filtered = _Program(len(code) // 8, ctypes.addressof(buffer))
    flags = _TSYNC | _NEW_LISTENER | _TSYNC_ESRCH
    listener = _libc().syscall(_SECCOMP_CALL[machine()], _SET_MODE_FILTER, flags, ctypes.byref(filtered))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp refused the filter")
    with socket.socket(fileno=os.dup(listener_to)) as channel:
        socket.send_fds(channel, [b"listener"], [listener])
    os.close(listener)


def refused_call(listener: int) -> str | None:
    """For the fork server: the name of the call that waits on ``listener``; ``None`` if its process has ended.

    A call of ``PROBED`` is answered with EPERM; others are left waiting.
    """
    notification = ctypes.create_string_buffer(_NOTIFICATION.size)
    if _libc().ioctl(listener, ctypes.c_ulong(_RECEIVE), notification) != 0:
        return None
    number, _, _, call, *_ = _NOTIFICATION.unpack(notification.raw)
    name = call_name(call)
    if name in PROBED:
        answer = ctypes.create_string_buffer(_RESPONSE.pack(number, 0, -errno.EPERM, 0))
        _libc().ioctl(listener, ctypes.c_ulong(_SEND), answer)
    return name


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
