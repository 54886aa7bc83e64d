"""The system calls that a confined program may not make, as a seccomp filter (classic BPF).

What is refused gives EPERM, so that a program sees an ordinary error. The filter is a list of what
is refused and not of what is allowed: which harmless calls an interpreter makes depends on its C
library. Calls that need a capability are not listed, as the program has none. Numbers are from the
kernel's headers (asm/unistd_64.h, asm-generic/unistd.h).
"""

import errno
import struct

# (x86-64, aarch64); None: the architecture does not have it.
_REFUSED = {
    # Network, and io_uring, which would do what is refused here. Without the first two there is no
    # socket to use the others on.
    "socket": (41, 198), "socketpair": (53, 199),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # Processes; `clone` is below.
    "fork": (57, None), "vfork": (58, None), "execveat": (322, 281),
    # Other processes: signals, memory, descriptors, priorities; `kill` and `tgkill` are below.
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272),
    "setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "ioprio_set": (251, 30),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    # What outlives the process, or is memory that no limit counts.
    "shmget": (29, 194), "shmctl": (31, 195), "shmat": (30, 196),
    "semget": (64, 190), "semctl": (66, 191), "semtimedop": (220, 192), "semop": (65, 193),
    "msgget": (68, 186), "msgctl": (71, 187), "msgrcv": (70, 188), "msgsnd": (69, 189),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # The kernel's wider surface, and namespaces, in which a program would have capabilities.
    "userfaultfd": (323, 282), "bpf": (321, 280), "perf_event_open": (298, 241),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_tree_attr": (467, 467),
    # What Landlock does not restrict: modes, owners, times and attributes, and, before its third
    # version, truncation.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466), "file_setattr": (469, 469),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None),
    "utimensat": (280, 88), "truncate": (76, 45),
}  # fmt: skip
# The C library falls back on the calls before them, whose arguments a filter can read.
_UNKNOWN = {"clone3": (435, 435), "openat2": (437, 437)}
# Allowed only with the process's own id (or, for the last, 0) as the first argument.
_OWN_PROCESS = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}
# Refused with these values of an argument: {name: (numbers, argument, values)}. Signals at the
# death of the parent (PR_SET_PDEATHSIG) stay as they are; F_SETOWN, F_SETSIG, F_SETOWN_EX and
# FIOSETOWN would have the kernel signal another process, and F_SETLEASE makes others wait.
_ARGUMENTS = {
    "prctl": ((157, 167), 0, (1,)),
    "fcntl": ((72, 25), 1, (8, 10, 15, 1024)),
    "ioctl": ((16, 29), 1, (0x8901,)),
}
# Truncation by an open for reading, which Landlock's first two versions allow.
_OPEN = {"open": ((2, None), 1), "openat": ((257, 56), 2)}
_O_ACCMODE, _O_TRUNC = 0o3, 0o1000
_CLONE, _CLONE_THREAD = (56, 220), 0x00010000

# Index into the tuples above, and the kernel's AUDIT_ARCH_….
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _EQUAL, _AND, _BITS, _RETURN = 0x20, 0x15, 0x54, 0x45, 0x06  # linux/bpf_common.h
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # linux/seccomp.h
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENT_OFFSET = 0, 4, 16  # struct seccomp_data
_X32 = 0x40000000


def program(machine: str, pid: int) -> bytes:
    """The filter of a process `pid` as an array of struct sock_filter.

    Args:
      machine: a key of `ARCHITECTURES`, as `os.uname().machine`.
    """
    index, audit = ARCHITECTURES[machine]
    refuse, unknown = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    code = [_step(_LOAD, _ARCH_OFFSET), *_unless(_EQUAL, audit, _KILL)]
    code.append(_step(_LOAD, _NUMBER_OFFSET))
    if machine == "x86_64":  # x32 has the same architecture and other numbers
        code += _where(_BITS, _X32, _KILL)
    for table, result in ((_REFUSED, refuse), (_UNKNOWN, unknown)):
        for numbers in table.values():
            if numbers[index] is not None:
                code += _where(_EQUAL, numbers[index], result)
    code += _call(_CLONE[index], 0, _unless(_BITS, _CLONE_THREAD, refuse))
    for name, numbers in _OWN_PROCESS.items():
        # In prlimit64, 0 is the process itself; in kill, its whole group.
        checks = _where(_EQUAL, 0, _ALLOW) if name == "prlimit64" else []
        code += _call(numbers[index], 0, [*checks, *_unless(_EQUAL, pid, refuse)])
    for numbers, argument, values in _ARGUMENTS.values():
        checks = [step for value in values for step in _where(_EQUAL, value, refuse)]
        code += _call(numbers[index], argument, checks)
    for numbers, argument in _OPEN.values():
        checks = [_step(_AND, _O_ACCMODE | _O_TRUNC), *_where(_EQUAL, _O_TRUNC, refuse)]
        code += _call(numbers[index], argument, checks)
    return b"".join([*code, _step(_RETURN, _ALLOW)])


def _call(number: int | None, argument: int, checks: list[bytes]) -> list[bytes]:
    """Checks of the low 32 bits of an argument of one call, which is allowed if they pass."""
    if number is None:
        return []
    body = [_step(_LOAD, _ARGUMENT_OFFSET + 8 * argument), *checks, _step(_RETURN, _ALLOW)]
    return [_step(_EQUAL, number, if_false=len(body)), *body]


def _where(test: int, value: int, result: int) -> list[bytes]:
    return [_step(test, value, if_false=1), _step(_RETURN, result)]


def _unless(test: int, value: int, result: int) -> list[bytes]:
    return [_step(test, value, if_true=1), _step(_RETURN, result)]


def _step(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
