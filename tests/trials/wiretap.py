"""A byte tee for HTTP/1.1 over TCP: passes bytes on unchanged, keeps them, and reads the exchanges out of them."""

import asyncio
import dataclasses
import threading


@dataclasses.dataclass(eq=False)
class Message:
    start: str
    headers: list  # (name as sent, value)
    body: bytes
    whole: bool  # False where the connection ended first

    def header(self, name):
        return next((v for n, v in self.headers if n.lower() == name), None)


@dataclasses.dataclass(eq=False)
class Exchange:
    request: Message
    response: Message | None  # None where not even a whole head came back


class Tee:
    """Listens on a free loopback port and forwards to `host:port`. `close()` returns the exchanges that passed."""

    def __init__(self, host, port):
        self.target = (host, port)
        self.connections = []
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self.thread.start()
        ready.wait()

    def _run(self, ready):
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self.loop.run_forever()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))

    async def _accept(self, reader, writer):
        connection = {"up": bytearray(), "down": bytearray(), "open": 2}
        self.connections.append(connection)
        # asyncio keeps only a weak reference to it.
        connection["task"] = asyncio.current_task()
        try:
            there_reader, there_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            connection["open"] = 0
            return
        await asyncio.gather(
            self._pump(reader, there_writer, connection, "up"),
            self._pump(there_reader, writer, connection, "down"),
        )

    async def _pump(self, reader, writer, connection, way):
        try:
            while data := await reader.read(65536):
                connection[way] += data
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            # One side reset: so does the other, as if the tee were not there.
            writer.transport.abort()
        finally:
            connection["open"] -= 1
            if connection["open"] == 0:
                writer.close()

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        found = []
        for connection in self.connections:
            up, down = bytes(connection["up"]), bytes(connection["down"])
            while up:
                request, up = _message(up, None)
                if request is None:
                    break
                response, down = _message(down, request.start.split(" ")[0])
                while response and response.start.split(" ")[1].startswith("1"):
                    response, down = _message(down, request.start.split(" ")[0])
                found.append(Exchange(request, response))
        return found


def _message(data, answered_method):
    """The first message in `data` and the rest. `answered_method` is None for a request."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None, b""
    start, *lines = head.decode("latin-1").split("\r\n")
    headers = [tuple(part.strip() for part in line.split(":", 1)) for line in lines]
    message = Message(start, headers, b"", True)
    if (message.header("transfer-encoding") or "").lower() == "chunked":
        message.body, message.whole, rest = _chunked(rest)
    elif (length := message.header("content-length")) is not None and answered_method != "HEAD":
        message.body, rest = rest[: int(length)], rest[int(length) :]
        message.whole = len(message.body) == int(length)
    elif answered_method and start.split(" ")[1] not in ("204", "304") and answered_method != "HEAD":
        message.body, rest = rest, b""
    return message, rest


def _chunked(data):
    body = bytearray()
    while True:
        size, found, data = data.partition(b"\r\n")
        if not found:
            return bytes(body), False, b""
        size = int(size.split(b";")[0], 16)
        if size == 0:
            # Trailers, then an empty line.
            while True:
                line, found, data = data.partition(b"\r\n")
                if not found:
                    return bytes(body), False, b""
                if not line:
                    return bytes(body), True, data
        body += data[:size]
        if len(data) < size + 2:
            return bytes(body), False, b""
        data = data[size + 2 :]
