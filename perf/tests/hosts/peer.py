# The foreign end of ESP: scapy for AES-GCM, OpenSSL through python3-cryptography for AES-GMAC (RFC 4543), which scapy lacks.
# Takes orders as JSON on standard input, answers with JSON. `open` reads a capture, `send` seals and sends on a raw socket.
import json
import logging
import re
import struct
import sys
import warnings

warnings.filterwarnings("ignore")
logging.getLogger("scapy").setLevel(logging.ERROR)
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.layers.l2 import Ether
from scapy.utils import PcapReader

orders = json.load(sys.stdin)
associations = {sa["spi"]: sa for sa in orders["associations"]}
by_name = {sa["name"]: sa for sa in orders["associations"]}


def scapy_sa(sa, outer=None):
    return SecurityAssociation(
        ESP, spi=sa["spi"], crypt_algo="AES-GCM", crypt_key=bytes.fromhex(sa["keymat"]), esn_en=sa["esn"], esn=0,
        tunnel_header=outer, nat_t_header=UDP(sport=50001, dport=4500) if sa["in_udp"] else None,
    )


def gmac(sa, sequence):
    keymat = bytes.fromhex(sa["keymat"])
    high = struct.pack("!I", 0) if sa["esn"] else b""
    iv = struct.pack("!Q", sequence)
    front = struct.pack("!I", sa["spi"]) + high + struct.pack("!I", sequence) + iv
    return AESGCM(keymat[:-4]), keymat[-4:] + iv, front


def open_capture():
    opened, markers, failed, why = {}, set(), 0, []
    for frame in PcapReader(orders["pcap"]):
        if ESP not in frame:
            continue
        packet = frame.getlayer(IP) or frame.getlayer(IPv6)
        # Without Ethernet padding.
        packet = packet.__class__(bytes(packet)[: packet.len if packet.version == 4 else 40 + packet.plen])
        sa = associations[packet[ESP].spi]
        try:
            if sa["authenticate"]:
                esp = bytes(packet[ESP])
                cipher, nonce, front = gmac(sa, packet[ESP].seq)
                assert nonce[4:] == esp[8:16]
                cipher.decrypt(nonce, esp[-16:], front + esp[16:-16])
                plain = esp[16:-16]
            else:
                plain = bytes(scapy_sa(sa).decrypt(packet))
        except (InvalidTag, Exception) as error:
            failed += 1
            why.append(f"{sa['name']}: {error!r}")
            continue
        opened[sa["name"]] = opened.get(sa["name"], 0) + 1
        markers.update(found.decode() for found in re.findall(rb"marker-of-[a-z]+", plain))
    return {"opened": opened, "failed": failed, "why": why[:3], "markers": sorted(markers)}


def sealed(order):
    sa = by_name[order["sa"]]
    family = IPv6 if ":" in order["source"] else IP
    inner = family(src=order["source"], dst=order["destination"]) / UDP(sport=4000, dport=order["port"]) / order["text"]
    inner = family(bytes(inner))
    sequence = order["sequence"]
    if "overlay" in order:
        # The guest's frame in the datagram of an overlay between the hosts.
        carried = bytes.fromhex(order["overlay"]["header"]) + bytes(
            Ether(src=order["source_mac"], dst=order["destination_mac"]) / inner
        )
        family = IPv6 if ":" in orders["outer"][0] else IP
        outer = family(src=orders["outer"][0], dst=orders["outer"][1])
        inner = family(bytes(outer / UDP(sport=50000, dport=order["overlay"]["port"], chksum=0) / carried))
    if order["how"] == "plain":
        return inner
    if sa["authenticate"]:
        header, payload = bytes(inner)[:20], bytes(inner)[20:]
        pad = -(len(payload) + 2) % 4
        body = payload + bytes(range(1, pad + 1)) + bytes([pad, 17])
        cipher, nonce, front = gmac(sa, sequence)
        tag = cipher.encrypt(nonce, b"", front + body)
        esp = struct.pack("!II", sa["spi"], sequence) + nonce[4:] + body + tag
        packet = IP(header)
        packet.remove_payload()
        packet.proto, packet.len = 50, 20 + len(esp)
        del packet.chksum
        return IP(bytes(packet) + esp)
    outer = None
    if sa["tunnel"]:
        outer = IP(src=orders["outer"][0], dst=orders["outer"][1])
    return scapy_sa(sa, outer).encrypt(inner, seq_num=sequence, iv=struct.pack("!Q", sequence))


def send():
    import socket

    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw.bind((orders["interface"], 0))
    for order in orders["packets"]:
        packet = bytes(sealed(order))
        tunnel = by_name[order["sa"]]["tunnel"] or "overlay" in order
        kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
        frame = bytearray(
            bytes(
                Ether(
                    src=order["source_mac"],
                    dst=orders["uplink_mac"] if tunnel else order["destination_mac"],
                    type=kind,
                )
            )
            + packet
        )
        if order["how"] == "tag":
            frame[-1] ^= 1
        if order["how"] == "spi":
            frame[34] ^= 0x40
        if order["how"] == "cut":
            frame = frame[:40]
        raw.send(bytes(frame))
    return {"sent": len(orders["packets"])}


json.dump({"open": open_capture, "send": send}[sys.argv[1]](), sys.stdout)
