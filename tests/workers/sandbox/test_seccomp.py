"""The filter for both machines, on whichever the tests run: its numbers are the kernel's, and its jumps lead where they
should. Read against the kernel's own headers where they are installed, and run on a small machine made here."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.sandbox import seccomp

HEADERS = {
    "x86_64": (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")),
    "aarch64": (Path("/usr/include/asm-generic/unistd.h"),),  # arm64's own header includes it
}
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h: AUDIT_ARCH_*
DEFINED = re.compile(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", re.MULTILINE)
ALLOW, NOTIFY, KILL, FAIL = 0x7FFF0000, 0x7FC00000, 0x80000000, 0x00050000  # linux/seccomp.h: SECCOMP_RET_*
PID, OTHER = 4321, 1


def committed(machine: str) -> dict[str, int]:
    """From the headers of Linux 6.1."""
    lines = (Path(__file__).parent / "system_calls.txt").read_text().splitlines()[1:]
    columns = {name: number for name, *number in map(str.split, lines)}
    place = list(HEADERS).index(machine)
    return {name: int(number[place]) for name, number in columns.items() if number[place] != "-"}


def installed(machine: str) -> dict[str, int]:
    """From this machine's headers, whichever version they have; what is committed where there are none."""
    found = [path for path in HEADERS[machine] if path.exists()]
    return {name: int(number) for name, number in DEFINED.findall(found[0].read_text())} if found else {}


@pytest.fixture(params=HEADERS)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(seccomp, "machine", lambda: request.param)
    return request.param  # type: ignore[no-any-return]


def answer(call: int, *arguments: int, architecture: int) -> int:
    """What the filter says, instruction by instruction (struct sock_filter, linux/bpf_common.h)."""
    data = {0: call, 4: architecture, **{16 + 8 * place: value for place, value in enumerate((*arguments, *[0] * 6))}}
    program, at, held = seccomp.program(PID), 0, 0
    while True:
        code, yes, no, operand = program[at]
        at += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            held = data.get(operand, 0)
        else:
            true = {0x15: held == operand, 0x45: bool(held & operand), 0x35: held >= operand}[code]
            at += yes if true else no


def test_every_number_is_the_running_kernels(machine: str) -> None:
    numbers = committed(machine) | installed(machine)
    named = {name: number for number, name in (seccomp.refused() | seccomp.denied()).items()}
    assert len(named) > 100
    assert {name: numbers.get(name) for name in named} == named
    for name in ("clone", "kill", "tgkill", "prctl", "prlimit64", "fcntl", "sched_setaffinity"):
        assert seccomp.call_name(numbers[name]) == name


def test_the_table_matches_the_kernel_headers(machine: str) -> None:
    numbers = committed(machine)
    assert len(numbers) > 300
    assert numbers | installed(machine) == installed(machine) | numbers


def test_a_number_belongs_to_one_call(machine: str) -> None:
    names = [*seccomp.refused().values(), *seccomp.denied().values()]
    assert len(seccomp.refused() | seccomp.denied()) == len(set(names)) == len(names)


def test_every_call_has_its_answer(machine: str) -> None:
    for name, number in committed(machine).items():
        said = answer(number, PID, architecture=ARCHITECTURE[machine])
        if number in seccomp.refused():
            assert said == NOTIFY, name
        elif number in seccomp.denied():
            assert said == FAIL | errno.EPERM, name
        elif name == "clone3":
            assert said == FAIL | errno.ENOSYS
        elif name not in ("clone", "sched_setaffinity"):
            assert said == ALLOW, name


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("clone", (0x00010F00,), ALLOW), ("clone", (0x11,), NOTIFY), ("kill", (PID, 9), ALLOW),
        ("kill", (OTHER, 9), NOTIFY), ("kill", (0, 9), NOTIFY), ("kill", (0xFFFFFFFF, 9), NOTIFY),
        ("tgkill", (PID, PID, 6), ALLOW), ("tgkill", (OTHER, OTHER, 6), NOTIFY), ("prctl", (1, 0), NOTIFY),
        ("prctl", (15,), ALLOW), ("prlimit64", (0, 7, 0), ALLOW), ("prlimit64", (0, 7, 0x7FFF0000), NOTIFY),
        ("fcntl", (3, 1), ALLOW), ("fcntl", (3, 4, 0x2000), ALLOW), ("fcntl", (3, 8, OTHER), NOTIFY),
        ("fcntl", (3, 10, 9), NOTIFY), ("fcntl", (3, 15), NOTIFY), ("sched_setaffinity", (0, 8), ALLOW),
        ("sched_setaffinity", (OTHER, 8), NOTIFY), ("openat", (3,), ALLOW), ("read", (3,), ALLOW),
    ],
)  # fmt: skip
def test_some_calls_are_decided_by_an_argument(
    machine: str, name: str, arguments: tuple[int, ...], expected: int
) -> None:
    assert answer(committed(machine)[name], *arguments, architecture=ARCHITECTURE[machine]) == expected


def test_calls_of_another_machine_kill_and_newer_calls_do_not_exist(machine: str) -> None:
    other = next(column for name, column in ARCHITECTURE.items() if name != machine)
    assert answer(0, architecture=other) == KILL
    assert answer(0x40000000 | 59, architecture=ARCHITECTURE[machine]) == KILL  # x32
    for number in (452, 463, 500, 10_000):
        assert answer(number, architecture=ARCHITECTURE[machine]) == FAIL | errno.ENOSYS
