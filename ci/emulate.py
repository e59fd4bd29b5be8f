"""Runs a Linux program of one thread on an emulated CPU, for instructions that the CPU at hand does not have.

    emulate.py SHIM PROGRAM [ARGUMENT...]

The CPU is Bochs's model of a Tiger Lake, with AVX-512, VAES and VPCLMULQDQ, in the package bochscpu-python; what
the kernel does for a program is here: loading, memory, and the system calls of a program that reads files and
prints. Memory is as it was mapped: what may not be touched faults, and ends the run with status 139. SHIM is a library that is
loaded beforehand. Some ten million instructions a second.
"""

import ctypes
import errno
import mmap
import os
import struct
import sys
import time

PAGE = 4096
# How many pages there are; the arena is touched only where the program is.
PAGES = 1 << 18
# Where things are put, all in the lower half.
PROGRAM = 0x555555550000
LOADER = 0x7F0000000000
MAPPINGS = 0x7E0000000000
STACK_END = 0x7FFF00000000
STACK = 8 << 20
# The handler of system calls, in the upper half.
HANDLER = 0xFFFF800000000000
READ, WRITE, EXECUTE = 1, 2, 4
PRESENT, WRITABLE, USER, NO_EXECUTE = 1, 2, 4, 1 << 63
ADDRESS = (1 << 52) - PAGE
SIGNALLED = 139

# The model that the package has chosen, and the one that is wanted: both are functions that it exports.
CHOSEN = "_Z23create_corei3_cnl_cpuidP8BX_CPU_C"
WANTED = "_Z22create_tigerlake_cpuidP8BX_CPU_C"

# What every system call comes to: WBINVD, which calls `Machine.called`, then CR3 is loaded to forget translations, and SYSRET
# follows. The program's stack is used past its red zone.
CALL = bytes.fromhex(
    "0f09"  # wbinvd
    "488d642480"  # lea rsp, [rsp - 128]
    "50"  # push rax
    "0f20d8"  # mov rax, cr3
    "0f22d8"  # mov cr3, rax
    "58"  # pop rax
    "488da42480000000"  # lea rsp, [rsp + 128]
    "480f07"  # sysretq
)


class Fault(Exception):
    """An address of the program's that is not mapped, given to a system call."""


def up(length):
    return -(-length // PAGE) * PAGE


class Memory:
    """Physical pages, the tables that map them, and the program's view of both."""

    def __init__(self, insert):
        self.arena = mmap.mmap(-1, PAGES * PAGE)
        self.host = ctypes.addressof(ctypes.c_char.from_buffer(self.arena))
        self.insert = insert
        self.free = []
        # Page 0 stays out of use.
        self.used = 1
        self.root = self.take()
        self.tables = {}
        # Of each mapped virtual page the physical one, by number.
        self.pages = {}

    def take(self):
        if self.free:
            page = self.free.pop()
            self.arena[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
            return page
        page = self.used
        if page == PAGES:
            sys.exit("emulate: the program wants more memory than there is")
        self.used += 1
        self.insert(page * PAGE, self.host + page * PAGE)
        return page

    def entry(self, address):
        """Where the last table's entry for an address stands."""
        table = self.tables.get(address >> 21)
        if table is None:
            table = self.root
            for shift in (39, 30, 21):
                at = table * PAGE + (address >> shift & 511) * 8
                (entry,) = struct.unpack_from("<Q", self.arena, at)
                if not entry & PRESENT:
                    entry = self.take() * PAGE | PRESENT | WRITABLE | USER
                    struct.pack_into("<Q", self.arena, at, entry)
                table = (entry & ADDRESS) // PAGE
            self.tables[address >> 21] = table
        return table * PAGE + (address >> 12 & 511) * 8

    def protect(self, address, length, access, mode=USER):
        for page in range(address, address + up(length), PAGE):
            if page not in self.pages:
                return -errno.ENOMEM
            entry = self.pages[page] * PAGE | PRESENT | mode
            entry |= WRITABLE if access & WRITE else 0
            entry |= 0 if access & EXECUTE else NO_EXECUTE
            struct.pack_into("<Q", self.arena, self.entry(page), entry if access else 0)
        return 0

    def map(self, address, length, access, mode=USER):
        self.unmap(address, length)
        for page in range(address, address + up(length), PAGE):
            self.pages[page] = self.take()
        self.protect(address, length, access, mode)

    def unmap(self, address, length):
        for page in range(address, address + up(length), PAGE):
            if page in self.pages:
                self.free.append(self.pages.pop(page))
                struct.pack_into("<Q", self.arena, self.entry(page), 0)

    def move(self, address, to, length):
        for offset in range(0, up(length), PAGE):
            self.pages[to + offset] = self.pages.pop(address + offset)
            struct.pack_into("<Q", self.arena, self.entry(address + offset), 0)
        self.protect(to, length, READ | WRITE)

    def pieces(self, address, length):
        """Where the bytes are in the arena."""
        while length:
            page, offset = address - address % PAGE, address % PAGE
            here = min(PAGE - offset, length)
            if page not in self.pages:
                raise Fault
            at = self.pages[page] * PAGE + offset
            yield at, here
            address, length = address + here, length - here

    def get(self, address, length):
        return b"".join(self.arena[at : at + here] for at, here in self.pieces(address, length))

    def put(self, address, data):
        done = 0
        for at, here in self.pieces(address, len(data)):
            self.arena[at : at + here] = data[done : done + here]
            done += here

    def string(self, address):
        text = b""
        while b"\0" not in text:
            text += self.get(address, PAGE - address % PAGE)
            address += PAGE - address % PAGE
        return text.split(b"\0")[0]


class Image:
    """A program or its loader, brought into memory."""

    def __init__(self, memory, path, base):
        with open(path, "rb") as file:
            data = file.read()
        (kind,) = struct.unpack_from("<H", data, 16)
        start, headers = struct.unpack_from("<QQ", data, 24)
        self.header_size, self.header_count = struct.unpack_from("<HH", data, 54)
        # Of a program that is not position-independent addresses are as they are.
        self.base = base if kind == 3 else 0
        self.start, self.headers = self.base + start, self.base + headers
        self.loader, self.end = None, 0
        for number in range(self.header_count):
            at = headers + number * self.header_size
            kind, flags, offset, address, _, in_file, in_memory, _ = struct.unpack_from("<IIQQQQQQ", data, at)
            if kind == 3:
                self.loader = data[offset : offset + in_file - 1].decode()
            if kind == 1:
                access = (flags & 4) >> 2 | flags & 2 | (flags & 1) << 2
                address += self.base
                begin = address - address % PAGE
                end = begin + up(address - begin + in_memory)
                for page in range(begin, end, PAGE):
                    if page not in memory.pages:
                        memory.map(page, PAGE, access)
                memory.put(address, data[offset : offset + in_file])
                self.end = max(self.end, end)


class Machine:
    """The CPU, and what a kernel does for the one program on it."""

    def __init__(self, bochs, session, memory, arguments):
        self.bochs, self.session, self.memory = bochs, session, memory
        self.status = None
        self.path = os.path.abspath(arguments[0])
        program = Image(memory, self.path, PROGRAM)
        entry, base = program.start, 0
        if program.loader:
            loader = Image(memory, program.loader, LOADER)
            entry, base = loader.start, loader.base
        self.base = program.base
        self.heap = program.end + (16 << 20)
        self.next_mapping = MAPPINGS
        memory.map(STACK_END - STACK, STACK, READ | WRITE)
        memory.map(HANDLER, PAGE, READ | EXECUTE, mode=0)
        memory.put(HANDLER, CALL)
        self.stack = STACK_END - 64
        random = self.push(os.urandom(16))
        names = [self.push(argument.encode() + b"\0") for argument in arguments]
        variables = [self.push(f"{name}={value}".encode() + b"\0") for name, value in os.environ.items()]
        auxiliary = {
            3: program.headers,
            4: program.header_size,
            5: program.header_count,
            6: PAGE,
            7: base,
            9: program.start,
            23: 0,
            25: random,
            31: names[0],
            0: 0,
        }
        words = [len(names), *names, 0, *variables, 0]
        for pair in auxiliary.items():
            words += pair
        self.stack -= (self.stack - 8 * len(words)) % 16
        self.push(struct.pack(f"<{len(words)}Q", *words))
        session.cpu.set_state(self.reset(entry))

    def push(self, data):
        self.stack -= len(data)
        self.memory.put(self.stack, data)
        return self.stack

    def reset(self, entry):
        """64-bit mode at the lowest privilege, with all registers of AVX-512 in use."""
        state = self.bochs.State()
        self.bochs.cpu.set_long_mode(state)
        # PG, AM, WP, NE, ET, MP, PE; PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE; NXE, LMA, LME, SCE; x87, SSE, AVX, AVX-512.
        state.cr0, state.cr4, state.efer, state.xcr0 = 0x80050033, 0x50620, 0xD01, 0xE7
        state.cr3 = self.memory.root * PAGE
        state.mxcsr, state.mxcsr_mask, state.fpcw, state.fptw = 0x1F80, 0xFFFF, 0x37F, 0xFFFF
        state.cs = self.segment(0x33, 0xA0FB)
        state.ss = state.ds = state.es = state.fs = state.gs = self.segment(0x2B, 0xC0F3)
        state.star, state.lstar, state.sfmask = 0x23 << 48 | 0x10 << 32, HANDLER, 0x700
        state.rip, state.rsp, state.rflags = entry, self.stack, 0x202
        return state

    def segment(self, selector, attributes, base=0):
        segment = self.bochs.Segment()
        segment.selector, segment.attr, segment.base = selector, attributes, base
        segment.limit, segment.present = 0xFFFFFFFF, True
        return segment

    def run(self):
        hook = self.bochs.Hook()
        hook.cache_cntrl = lambda *_: self.called()
        hook.exception = lambda _, __, vector, error: self.faulted(vector, error)
        self.session.run([hook])
        return SIGNALLED if self.status is None else self.status

    def end(self, status):
        self.status = status
        self.session.stop()
        return 0

    def faulted(self, vector, error):
        state = self.session.cpu.state
        place = f"{state.rip:#x} ({self.path} + {state.rip - self.base:#x})"
        print(f"emulate: exception {vector}, error {error:#x}, at {place}, CR2 {state.cr2:#x}", file=sys.stderr)
        self.end(SIGNALLED)

    def called(self):
        cpu = self.session.cpu
        number = cpu.rax
        arguments = [cpu.rdi, cpu.rsi, cpu.rdx, cpu.r10, cpu.r8, cpu.r9]
        call = CALLS.get(number)
        if call is None:
            print(f"emulate: system call {number} is not known", file=sys.stderr)
        try:
            answer = call(self, *arguments) if call else -errno.ENOSYS
        except OSError as error:
            answer = -error.errno
        except Fault:
            answer = -errno.EFAULT
        except Exception as error:
            print(f"emulate: system call {number}: {error!r}", file=sys.stderr)
            answer = self.end(SIGNALLED)
        cpu.rax = answer % (1 << 64)

    def room(self, length):
        """Addresses of which nobody has any; beside each mapping there is nothing."""
        address = self.next_mapping
        self.next_mapping += up(length) + 16 * PAGE
        return address

    def mmap(self, address, length, access, flags, file, offset):
        fixed, anonymous = flags & 0x10, flags & 0x20
        if not fixed:
            address = self.room(length)
        self.memory.map(address, length, access)
        if not anonymous:
            self.memory.put(address, os.pread(file, up(length), offset))
        return address

    def mremap(self, address, old, new, flags, *_):
        old, new = up(old), up(new)
        if new <= old:
            self.memory.unmap(address + new, old - new)
            return address
        if not flags & 1:
            return -errno.ENOMEM
        to = self.room(new)
        self.memory.move(address, to, old)
        self.memory.map(to + old, new - old, READ | WRITE)
        return to

    def brk(self, address, *_):
        if address > self.heap:
            end = up(self.heap)
            self.memory.map(end, max(0, address - end), READ | WRITE)
            self.heap = address
        return self.heap

    def madvise(self, address, length, advice, *_):
        if advice == 4:
            self.memory.put(address, bytes(length))
        return 0

    def read(self, data, address):
        self.memory.put(address, data)
        return len(data)

    def writev(self, file, address, count, *_):
        pieces = struct.iter_unpack("<QQ", self.memory.get(address, 16 * count))
        return sum(os.write(file, self.memory.get(begin, length)) for begin, length in pieces)

    def open(self, name, flags, mode):
        return os.open(self.memory.string(name), flags, mode)

    def stat(self, found, address):
        fields = (found.st_dev, found.st_ino, found.st_nlink, found.st_mode, found.st_uid, found.st_gid, 0, found.st_rdev)
        sizes = (found.st_size, found.st_blksize, found.st_blocks)
        self.memory.put(address, struct.pack("<QQQIIIIQqqq72x", *fields, *sizes))
        return 0

    def stat_at(self, file, name, address, flags):
        name = self.memory.string(name)
        if not name and flags & 0x1000:
            return self.stat(os.fstat(file), address)
        return self.stat(os.stat(name, follow_symlinks=not flags & 0x100), address)

    def readlink(self, name, address, length):
        name = self.memory.string(name)
        target = self.path.encode() if name == b"/proc/self/exe" else os.readlink(name)
        return self.read(target[:length], address)

    def arch_prctl(self, code, address, *_):
        if code != 0x1002:
            return -errno.EINVAL
        self.session.cpu.fs = self.segment(0x2B, 0xC0F3, base=address)
        return 0

    def clock(self, clock, address, *_):
        return self.read(struct.pack("<QQ", *divmod(time.clock_gettime_ns(clock), 10**9)), address) and 0


def signed(number):
    """A descriptor, which may be AT_FDCWD."""
    return ctypes.c_int(number).value


def nothing(*_):
    return 0


CALLS = {
    0: lambda one, file, at, length, *_: one.read(os.read(file, length), at),
    1: lambda one, file, at, length, *_: os.write(file, one.memory.get(at, length)),
    3: lambda one, file, *_: os.close(file) or 0,
    4: lambda one, name, at, *_: one.stat_at(-1, name, at, 0),
    5: lambda one, file, at, *_: one.stat(os.fstat(file), at),
    8: lambda one, file, offset, whence, *_: os.lseek(file, ctypes.c_int64(offset).value, whence),
    9: Machine.mmap,
    10: lambda one, at, length, access, *_: one.memory.protect(at, length, access),
    11: lambda one, at, length, *_: one.memory.unmap(at, length) or 0,
    12: Machine.brk,
    17: lambda one, file, at, length, offset, *_: one.read(os.pread(file, length, offset), at),
    20: Machine.writev,
    21: lambda one, name, mode, *_: 0 if os.access(one.memory.string(name), mode) else -errno.ENOENT,
    25: Machine.mremap,
    28: Machine.madvise,
    60: lambda one, status, *_: one.end(status & 255),
    79: lambda one, at, length, *_: one.read(os.getcwdb() + b"\0", at),
    89: lambda one, name, at, length, *_: one.readlink(name, at, length),
    158: Machine.arch_prctl,
    204: lambda one, _, length, at, *__: one.read(b"\1" + bytes(7), at),
    228: Machine.clock,
    231: lambda one, status, *_: one.end(status & 255),
    257: lambda one, _, name, flags, mode, *__: one.open(name, flags, mode),
    262: lambda one, file, name, at, flags, *_: one.stat_at(signed(file), name, at, flags),
    267: lambda one, _, name, at, length, *__: one.readlink(name, at, length),
    302: lambda one, _, __, ___, old, *____: old and one.read(struct.pack("<QQ", STACK, STACK), old) and 0,
    318: lambda one, at, length, *_: one.read(os.urandom(length), at),
    # poll, rt_sigaction, rt_sigprocmask, sched_yield, futex and set_robust_list: one thread, no signals.
    **dict.fromkeys((7, 13, 14, 24, 202, 273), nothing),
    # sigaltstack and munlock: as if done.
    **dict.fromkeys((131, 149, 150, 157), nothing),
    # getpid, gettid and set_tid_address.
    **dict.fromkeys((39, 186, 218), lambda *_: 100),
    # getuid, getgid, geteuid and getegid.
    **dict.fromkeys((102, 104, 107, 108), nothing),
    # ioctl: nothing is a terminal.
    16: lambda *_: -errno.ENOTTY,
    # statx and rseq: the C library does without.
    **dict.fromkeys((332, 334), lambda *_: -errno.ENOSYS),
}


def choose_cpu(library):
    """Makes the package take the model that is wanted: its own choice becomes a jump to it."""
    libc = ctypes.CDLL(None)
    chosen, wanted = (ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in (CHOSEN, WANTED))
    # mov rax, wanted; jmp rax
    jump = b"\x48\xb8" + struct.pack("<Q", wanted) + b"\xff\xe0"
    begin = chosen - chosen % PAGE
    if libc.mprotect(ctypes.c_void_p(begin), ctypes.c_size_t(2 * PAGE), READ | WRITE | EXECUTE) != 0:
        sys.exit("emulate: the CPU's model cannot be chosen")
    ctypes.memmove(chosen, jump, len(jump))


def main():
    shim, *arguments = sys.argv[1:]
    ctypes.CDLL(os.path.abspath(shim), ctypes.RTLD_GLOBAL)
    import bochscpu
    import bochscpu.cpu
    import bochscpu.memory

    choose_cpu(ctypes.CDLL(sys.modules["bochscpu._bochscpu"].__file__))
    session = bochscpu.Session()
    session.missing_page_handler = lambda page: sys.exit(f"emulate: physical page {page:#x} is not there")
    memory = Memory(bochscpu.memory.page_insert)
    status = Machine(bochscpu, session, memory, arguments).run()
    sys.stdout.flush()
    # The package's own end takes long and gives nothing.
    os._exit(status)


main()
