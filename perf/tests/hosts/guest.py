"""A guest whose kernel knows no VLANs: sends and answers frames of its own making.

    guest.py answer            answers pings in the VLAN that they come in, untagged ones never
    guest.py send FRAME COUNT  sends a frame, as scapy writes it
    guest.py ask FRAME         sends a frame until it is answered, and prints the answer's VLAN
"""
import sys

from scapy.all import (ICMP, IP, TCP, UDP, Dot1AD, Dot1Q, Ether, ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt,
                       IPv6ExtHdrFragment, PadN, Raw, AsyncSniffer, conf, sendp, sniff)

conf.verb = 0
NAMES = {one.__name__: one for one in (ICMP, IP, TCP, UDP, Dot1AD, Dot1Q, Ether, ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt,
                                       IPv6ExtHdrFragment, PadN, Raw)}


def frame(text):
    return eval(text, {"__builtins__": {}}, NAMES)


def answer(asked):
    if Dot1Q not in asked:
        return
    head = Ether(src=asked[Ether].dst, dst=asked[Ether].src) / Dot1Q(vlan=asked[Dot1Q].vlan)
    if ICMP in asked and asked[ICMP].type == 8:
        echo = asked[ICMP]
        reply = IP(src=asked[IP].dst, dst=asked[IP].src) / ICMP(type=0, id=echo.id, seq=echo.seq) / echo.payload
    elif ICMPv6EchoRequest in asked:
        echo = asked[ICMPv6EchoRequest]
        reply = IPv6(src=asked[IPv6].dst, dst=asked[IPv6].src) / ICMPv6EchoReply(id=echo.id, seq=echo.seq, data=echo.data)
    else:
        return
    sendp(head / reply, iface="eth0")


def is_reply(got):
    return ICMP in got and got[ICMP].type == 0 or ICMPv6EchoReply in got


if sys.argv[1] == "answer":
    sniff(iface="eth0", prn=answer, store=False, started_callback=lambda: print("listening", flush=True))
elif sys.argv[1] == "send":
    sendp(frame(sys.argv[2]), iface="eth0", count=int(sys.argv[3]))
else:
    for _ in range(20):
        sniffer = AsyncSniffer(iface="eth0", lfilter=is_reply, count=1, timeout=1,
                               started_callback=lambda: sendp(frame(sys.argv[2]), iface="eth0"))
        sniffer.start()
        sniffer.join()
        for got in sniffer.results:
            print(got[Dot1Q].vlan if Dot1Q in got else "untagged")
            sys.exit()
    sys.exit("no answer")
