"""Messages of `fused.text.v1` as bytes, written by hand: the attacks need only a handful of fields."""

import struct

GENERATE = "/fused.text.v1.TextGeneration/Generate"
CONTENT_TYPE = "application/grpc"


def generate(text, num_tokens):
    """A framed GenerateRequest: a prompt and how many tokens it shall get."""
    prompt = _bytes(1, text.encode())
    stopping = _number(1, num_tokens) + _number(4, 1)
    return framed(_bytes(3, prompt) + _bytes(5, stopping))


def framed(message, announced=None):
    """A gRPC frame. `announced` is the length in its head, where that shall not be the message's."""
    return b"\0" + struct.pack(">I", len(message) if announced is None else announced) + message


def _bytes(field, value):
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _number(field, value):
    return _varint(field << 3) + _varint(value)


def _varint(value):
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
