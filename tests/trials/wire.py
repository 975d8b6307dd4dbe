"""When a client's packets were on the loopback interface, by the kernel's stamps. Needs root (a packet socket)."""

import ctypes
import dataclasses
import socket
import struct
import threading
import time

ETH_P_IP = 0x0800
SO_ATTACH_FILTER = 26
SO_TIMESTAMPNS = 35
SYN, ACK = 0x02, 0x10
BUFFER_BYTES = 64 << 20  # of the kernel's queue: a trial sends far less


@dataclasses.dataclass
class WireRequest:
    path: str
    t_syn_ns: int | None  # of the connection, if this is its first request
    t_first_ns: int  # first byte of the request
    t_last_ns: int  # segment with its last byte


class Wire:
    """The requests that clients send to `port` of this machine; use as a context, then ask `requests()`."""

    def __init__(self, port):
        self.segments = []  # t_ns (CLOCK_MONOTONIC), client port, is SYN, payload
        self.over = threading.Event()
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        attach_filter(self.socket, port)
        self.socket.bind(("lo", ETH_P_IP))
        self.socket.settimeout(0.1)
        self.thread = threading.Thread(target=self.listen)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self.socket.close()

    def listen(self):
        offset = wall_offset_ns()
        while not self.over.is_set():
            try:
                packet, ancillary, _, _ = self.socket.recvmsg(1 << 17, 256)
            except TimeoutError:
                continue
            ((_, _, stamp),) = [a for a in ancillary if a[1] == SO_TIMESTAMPNS]
            seconds, ns = struct.unpack("qq", stamp)
            header = (packet[0] & 15) * 4
            (client,) = struct.unpack_from("!H", packet, header)
            payload = packet[header + (packet[header + 12] >> 4) * 4 :]
            syn = packet[header + 13] & (SYN | ACK) == SYN
            if syn or payload:
                self.segments.append((seconds * 10**9 + ns - offset, client, syn, payload))

    def requests(self):
        """The POSTs, in the order in which their last bytes came."""
        found, syn, open_request = [], {}, {}
        for t_ns, client, is_syn, payload in sorted(self.segments, key=lambda s: s[0]):
            if is_syn:
                syn[client] = t_ns
            elif payload.startswith(b"POST "):
                path = payload.split(b" ", 2)[1].decode("latin-1")
                open_request[client] = WireRequest(path, syn.pop(client, None), t_ns, t_ns)
                found.append(open_request[client])
            elif payload.startswith(b"GET "):
                syn.pop(client, None)
                open_request.pop(client, None)
            elif client in open_request:
                open_request[client].t_last_ns = t_ns
        return sorted(found, key=lambda request: request.t_last_ns)


def wall_offset_ns():
    """CLOCK_REALTIME − CLOCK_MONOTONIC, from the tightest of a few readings."""

    def reading():
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        return after - before, wall - (before + after) // 2

    return min(reading() for _ in range(50))[1]


def attach_filter(packets, port):
    """Only TCP segments to `port` reach us: a listener that read the answers too would be load of its own."""
    program = [
        (0x30, 0, 0, 9),  # protocol of the IPv4 header
        (0x15, 0, 4, socket.IPPROTO_TCP),
        (0xB1, 0, 0, 0),  # length of the IPv4 header
        (0x48, 0, 0, 2),  # TCP's destination port
        (0x15, 0, 1, port),
        (0x06, 0, 0, 0x40000),
        (0x06, 0, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    what = struct.pack("HL", len(program), ctypes.addressof(code))
    packets.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, what)
