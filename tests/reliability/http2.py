"""A raw HTTP/2 client over cleartext: streams that are reset, windows that stay shut, messages without their ends."""

import asyncio
from urllib.parse import urlsplit

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

READ_BYTES = 1 << 16


class Closed(Exception):
    """The server has closed the connection."""


class Connection:
    """One connection, opened by `await Connection.open(url)`. With `window` 0 the server may send heads but no body."""

    def __init__(self, url, reader, writer, window):
        self._authority = urlsplit(url).netloc
        self._reader, self._writer = reader, writer
        self._gives_back = window is None
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        if window is not None:
            self._h2.local_settings = type(self._h2.local_settings)(
                client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.ENABLE_PUSH: 0})
        self.statuses = {}
        self.bodies = {}
        self.ended = set()
        self.resets = set()
        self.is_closed = False
        self.sent_bytes = 0
        self._changed = asyncio.Event()
        self._has_settings = asyncio.Event()
        self._pump_task = None

    @classmethod
    async def open(cls, url, window=None):
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        connection = cls(url, reader, writer, window)
        connection._h2.initiate_connection()
        connection._flush()
        connection._pump_task = asyncio.create_task(connection._pump())
        # The server's limit of streams is known only then.
        await asyncio.wait_for(connection._has_settings.wait(), 10)
        return connection

    @property
    def max_streams(self):
        return self._h2.remote_settings.max_concurrent_streams

    def request(self, path, content_type, num_body_bytes=None):
        """Sends a request's head and returns the number of its stream."""
        if self.is_closed:
            raise Closed
        stream = self._h2.get_next_available_stream_id()
        headers = [(":method", "POST"), (":scheme", "http"), (":authority", self._authority), (":path", path),
                   ("content-type", content_type), ("te", "trailers")]
        if num_body_bytes is not None:
            headers.append(("content-length", str(num_body_bytes)))
        self._h2.send_headers(stream, headers)
        self._flush()
        return stream

    async def send(self, stream, body, end=True):
        """Sends a body as far and as fast as the server's windows allow."""
        view = memoryview(body)
        while view:
            if self.is_closed or stream in self.resets:
                raise Closed
            try:
                room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size, len(view))
            except ProtocolError as error:
                raise Closed from error
            if room == 0:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._h2.send_data(stream, bytes(view[:room]), end_stream=end and room == len(view))
            view = view[room:]
            self.sent_bytes += room
            self._flush()
            await self._writer.drain()

    def reset(self, stream):
        """Takes a request back."""
        try:
            self._h2.reset_stream(stream, 8)
        except ProtocolError:
            # It has ended already.
            return
        self._flush()

    async def wait(self, stream, timeout_s=60.0):
        """Waits until a stream has ended, however."""
        async with asyncio.timeout(timeout_s):
            while not self.is_closed and stream not in self.ended and stream not in self.resets:
                self._changed.clear()
                await self._changed.wait()

    def abort(self):
        """Hangs up without a word."""
        self._pump_task.cancel()
        self._writer.transport.abort()

    def _flush(self):
        self._writer.write(self._h2.data_to_send())

    async def _pump(self):
        try:
            while data := await self._reader.read(READ_BYTES):
                for event in self._h2.receive_data(data):
                    self._note(event)
                self._flush()
                self._changed.set()
        except (OSError, ProtocolError):
            pass
        self.is_closed = True
        self._changed.set()
        self._has_settings.set()

    def _note(self, event):
        match event:
            case ResponseReceived():
                self.statuses[event.stream_id] = int(dict(event.headers)[":status"])
            case DataReceived():
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                if self._gives_back:
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case StreamEnded():
                self.ended.add(event.stream_id)
            case StreamReset():
                self.resets.add(event.stream_id)
            case RemoteSettingsChanged():
                self._has_settings.set()
            case ConnectionTerminated():
                self.is_closed = True
            case WindowUpdated():
                pass
