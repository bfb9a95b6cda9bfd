"""A TCP relay between nodes and a router's pool port that delays, holds, loses or breaks, each way by itself.

A held way keeps its bytes until it flows again: a partition that TCP survives. A losing way swallows them: what a firewall
or a NAT does that forgets the connection. Nothing can be right on such a connection any more, so healing breaks it.
"""

import collections
import selectors
import socket
import threading
import time

FLOW, HOLD, LOSE = "flow", "hold", "lose"
WAITING_BYTES_MAX = 1 << 20  # of one way; more stays with its sender


class Way:
    """The bytes from one socket to another, oldest first, each piece with the time from which it may go on."""

    def __init__(self, pair, source, sink, is_up):
        self.pair, self.source, self.sink, self.is_up = pair, source, sink, is_up
        self.pieces = collections.deque()
        self.waiting_bytes = 0


class Relay:
    """One listener; every connection goes on to `endpoint`. Its thread owns all sockets, the faults are plain fields."""

    def __init__(self, endpoint):
        host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
        self.target = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.endpoint = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.ways = {}  # source -> Way
        self.up, self.down = FLOW, FLOW  # node to router, router to node
        self.delay_s = (0.0, 0.0)  # at least, at most; pieces never overtake each other
        self.random = None
        self.lost = set()  # sources of connections that have lost bytes
        self.broken = False
        self.stopping = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def fault(self, up=FLOW, down=FLOW):
        self.up, self.down = up, down

    def delay(self, random, least_s, most_s):
        self.random = random
        self.delay_s = (least_s, most_s)

    def heal(self):
        self.up = self.down = FLOW
        self.delay_s = (0.0, 0.0)
        self.broken = self.broken or bool(self.lost)

    def break_connections(self):
        self.broken = True

    def close(self):
        self.stopping = True
        self.thread.join()

    def drop(self, source):
        way = self.ways.get(source)
        if way is None:
            return
        for one in way.pair:
            self.ways.pop(one, None)
            self.lost.discard(one)
            self.selector.unregister(one)
            one.close()

    def accept(self):
        try:
            near, _ = self.listener.accept()
        except BlockingIOError:
            return
        try:
            far = socket.create_connection(self.target, 1)
        except OSError:
            near.close()
            return
        for source, sink, is_up in ((near, far, True), (far, near, False)):
            source.setblocking(False)
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.ways[source] = Way((near, far), source, sink, is_up)
            self.selector.register(source, selectors.EVENT_READ)

    def state(self, way):
        return self.up if way.is_up else self.down

    def read(self, way):
        if self.state(way) == HOLD or way.waiting_bytes > WAITING_BYTES_MAX:
            return
        try:
            data = way.source.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(way.source)
        elif self.state(way) == LOSE:
            self.lost.add(way.source)
        else:
            due = time.monotonic() + (self.random.uniform(*self.delay_s) if self.delay_s[1] else 0.0)
            if way.pieces:
                due = max(due, way.pieces[-1][0])
            way.pieces.append((due, data))
            way.waiting_bytes += len(data)

    def write(self, way, now):
        while way.pieces and way.pieces[0][0] <= now and self.state(way) != HOLD:
            due, data = way.pieces[0]
            try:
                sent = way.sink.send(data)
            except BlockingIOError:
                return
            except OSError:
                self.drop(way.source)
                return
            way.waiting_bytes -= sent
            if sent < len(data):
                way.pieces[0] = (due, data[sent:])
                return
            way.pieces.popleft()

    def run(self):
        while not self.stopping:
            if self.broken:
                self.broken = False
                for source in list(self.ways):
                    self.drop(source)
            waiting = any(way.pieces for way in list(self.ways.values()))
            idle = True
            for key, _ in self.selector.select(0.002 if waiting else 0.02):
                if key.fileobj is self.listener:
                    self.accept()
                elif key.fileobj in self.ways:
                    way = self.ways[key.fileobj]
                    idle = idle and self.state(way) == HOLD
                    self.read(way)
            now = time.monotonic()
            for way in list(self.ways.values()):
                if way.source in self.ways:
                    self.write(way, now)
            if idle and (self.up == HOLD or self.down == HOLD):
                time.sleep(0.01)  # a held way stays readable
        for source in list(self.ways):
            self.drop(source)
        self.listener.close()
