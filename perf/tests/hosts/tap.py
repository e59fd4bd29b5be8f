"""A guest behind a tap, as its VMM opens it: writes one packet of blue-1 to blue-2, with or without a virtio-net header.

    tap.py INTERFACE plain TEXT            a datagram, and no header
    tap.py INTERFACE partial TEXT          a datagram whose checksum is left
    tap.py INTERFACE segments TEXT LENGTH  a datagram that is to be cut, of LENGTH bytes each
    tap.py INTERFACE tcp BYTES LENGTH      so many bytes of TCP, to be cut
"""
import fcntl
import os
import struct
import sys

TUNSETIFF = 0x400454CA
TAP, NO_INFORMATION, HEADER = 0x2, 0x1000, 0x4000
# linux/virtio_net.h
NEEDS_CHECKSUM, TCP_SEGMENTS, UDP_SEGMENTS = 1, 1, 5
SOURCE, DESTINATION = bytes([10, 1, 0, 1]), bytes([10, 1, 0, 2])
MACS = bytes.fromhex("020000010002" "020000010001")


def folded(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_header(protocol, length):
    return folded(SOURCE + DESTINATION + struct.pack("!BBH", 0, protocol, length))


def frame(protocol, segment):
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, protocol, 0) + SOURCE + DESTINATION
    header = header[:10] + struct.pack("!H", 0xFFFF - folded(header)) + header[12:]
    return MACS + b"\x08\0" + header + segment


def udp(data):
    length = 8 + len(data)
    return frame(17, struct.pack("!HHHH", 7000, 7001, length, pseudo_header(17, length)) + data)


def tcp(data):
    checksum = pseudo_header(6, 20 + len(data))
    return frame(6, struct.pack("!HHIIBBHHH", 7000, 7001, 1, 2, 0x50, 0x10, 100, checksum, 0) + data)


interface, kind, what = sys.argv[1:4]
with_header = kind != "plain"
tap = os.open("/dev/net/tun", os.O_RDWR)
flags = TAP | NO_INFORMATION | (HEADER if with_header else 0)
fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", interface.encode(), flags))
if kind == "plain":
    packet = bytearray(udp(what.encode()))
    packet[40:42] = b"\0\0"
elif kind == "partial":
    packet = struct.pack("=BBHHHH", NEEDS_CHECKSUM, 0, 0, 0, 34, 6) + udp(what.encode())
elif kind == "segments":
    packet = struct.pack("=BBHHHH", NEEDS_CHECKSUM, UDP_SEGMENTS, 42, int(sys.argv[4]), 34, 6) + udp(what.encode())
else:
    packet = struct.pack("=BBHHHH", NEEDS_CHECKSUM, TCP_SEGMENTS, 54, int(sys.argv[4]), 34, 16) + tcp(bytes(int(what)))
os.write(tap, packet)
