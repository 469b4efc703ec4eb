"""The project's seccomp profile (`seccomp.json`, in Docker's format), and the same profile as a filter for bubblewrap.

Docker takes the JSON as it is. bubblewrap takes a BPF program, which libseccomp makes: it knows the system call numbers
of each architecture, and nearly every distribution has it (systemd and apt need it).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
from functools import cache
from pathlib import Path

PROFILE = Path(__file__).with_name("seccomp.json")
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_COMPARE = {"SCMP_CMP_NE": 1, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5, "SCMP_CMP_MASKED_EQ": 7}


class SeccompUnavailable(Exception):
    """No filter can be made here; says what to install."""


class _Argument(ctypes.Structure):
    _fields_ = (
        ("index", ctypes.c_uint),
        ("compare", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("value_two", ctypes.c_uint64),
    )


@cache
def profile() -> str:
    """The JSON, without white space: what Docker's `security_opt` takes after `seccomp=`."""
    return json.dumps(json.loads(PROFILE.read_text(encoding="utf-8")), separators=(",", ":"))


@cache
def bpf() -> bytes:
    """The profile as a BPF program for this machine's architecture. Raises `SeccompUnavailable`."""
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as error:
        raise SeccompUnavailable(
            "libseccomp.so.2 is missing; on Debian and Ubuntu: apt-get install libseccomp2"
        ) from error
    library.seccomp_init.restype = ctypes.c_void_p
    rules = json.loads(profile())
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_action(rules["defaultAction"], rules))))
    try:
        for rule in rules["syscalls"]:
            arguments = (_Argument * len(rule.get("args", [])))(
                *(
                    _Argument(each["index"], _COMPARE[each["op"]], each["value"], each.get("valueTwo", 0))
                    for each in rule.get("args", [])
                )
            )
            for name in rule["names"]:
                number = library.seccomp_syscall_resolve_name(name.encode())
                if number < 0:  # this architecture, or this libseccomp, has no such call
                    continue
                action = ctypes.c_uint32(_action(rule["action"], rule))
                result = library.seccomp_rule_add_array(context, action, number, len(arguments), arguments)
                if result:
                    raise SeccompUnavailable(f"the rule for {name} is refused: {os.strerror(-result)}")
        target = os.memfd_create("seccomp")
        try:
            if result := library.seccomp_export_bpf(context, target):
                raise SeccompUnavailable(f"the filter cannot be made: {os.strerror(-result)}")
            return os.pread(target, os.fstat(target).st_size, 0)
        finally:
            os.close(target)
    finally:
        library.seccomp_release(context)


def _action(name: str, rule: dict[str, object]) -> int:
    if name == "SCMP_ACT_ALLOW":
        return _ALLOW
    number = rule.get("errnoRet", rule.get("defaultErrnoRet", errno.EPERM))
    assert isinstance(number, int)
    return _ERRNO | number
