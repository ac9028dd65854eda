"""tf.train.Example without TensorFlow: its features, read from the bytes of the protocol buffer.

message Example { Features features = 1; }
message Features { map<string, Feature> feature = 1; }
message Feature { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2;
                               Int64List int64_list = 3; } }
each list: repeated value = 1 (floats and integers may be packed)
"""

import struct
from collections.abc import Iterator
from typing import Any

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class BrokenExample(Exception):
    """Bytes that are no tf.train.Example."""


def example_fields(data: bytes) -> dict[str, Any]:
    """{name: value} of an Example's features: bytes, float or int, a list of them if not just one.

    Raises:
      BrokenExample: the bytes are none.
    """
    fields: dict[str, Any] = {}
    try:
        for features in _messages(data, 1):
            for entry in _messages(features, 1):
                (name,) = list(_messages(entry, 1)) or [b""]
                values: list[Any] = []
                for number, kind, content in _fields(_last(entry, 2)):
                    if kind == LENGTH:
                        values = list(_values(number, content))
                fields[name.decode()] = values[0] if len(values) == 1 else values
    except (BrokenExample, ValueError, IndexError, struct.error) as error:
        raise BrokenExample(str(error) or type(error).__name__) from None
    if not fields:
        raise BrokenExample("it has no features")
    return fields


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, value) of each field of a message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        value: int | bytes
        if kind == VARINT:
            value, at = _varint(data, at)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
            value, at = data[at : at + size], at + size
        elif kind == LENGTH:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise BrokenExample(f"wire type {kind} at byte {at}")
        if at > len(data):
            raise BrokenExample("it ends inside a field")
        yield number, kind, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise BrokenExample(f"a number of more than 64 bits at byte {at}")


def _messages(data: bytes, number: int) -> Iterator[bytes]:
    for found, kind, value in _fields(data):
        if found == number and kind == LENGTH:
            yield value


def _last(data: bytes, number: int) -> bytes:
    return (list(_messages(data, number)) or [b""])[-1]


def _values(number: int, content: bytes) -> Iterator[Any]:
    """The values of a BytesList (1), FloatList (2) or Int64List (3)."""
    for field, kind, value in _fields(content):
        if field != 1:
            continue
        if number == 1 and kind == LENGTH:
            yield value
        elif number == 2 and kind in (LENGTH, FIXED32):
            yield from (each for (each,) in struct.iter_unpack("<f", value))
        elif number == 3 and kind == LENGTH:
            at = 0
            while at < len(value):
                each, at = _varint(value, at)
                yield _signed(each)
        elif number == 3 and kind == VARINT:
            yield _signed(value)
        else:
            raise BrokenExample(f"wire type {kind} in a list of kind {number}")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
