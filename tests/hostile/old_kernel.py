"""Runs a program as on a kernel that does not know SO_PASSRIGHTS (before Linux 6.16): setsockopt(2) says ENOPROTOOPT."""
import ctypes
import os
import struct
import sys

SO_PASSRIGHTS = 83
ENOPROTOOPT = 92
SETSOCKOPT = {"x86_64": 54, "aarch64": 208, "riscv64": 208}[os.uname().machine]
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000

# struct seccomp_data: the number of the system call at 0, the third argument at 32.
program = [
    (LOAD, 0, 0, 0),
    (JUMP_IF_EQUAL, 0, 3, SETSOCKOPT),
    (LOAD, 0, 0, 32),
    (JUMP_IF_EQUAL, 0, 1, SO_PASSRIGHTS),
    (RETURN, 0, 0, ERRNO | ENOPROTOOPT),
    (RETURN, 0, 0, ALLOW),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
prctl = ctypes.CDLL(None, use_errno=True).prctl
filter = ctypes.create_string_buffer(struct.pack("HL", len(program), ctypes.addressof(code)))
if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter), 0, 0):
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[1], sys.argv[1:])
