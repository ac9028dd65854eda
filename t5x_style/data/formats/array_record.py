"""The formats 'array_record' (JSON objects) and 'array_record_example' (tf.train.Example).

Examples are parsed by google.protobuf, without TensorFlow. The libraries are imported when they
are called: in the process that builds stores.
"""

import contextlib
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from t5x_style.data.formats.format import (
    BadRecord,
    FileFormat,
    OnRead,
    Part,
    Record,
    Split,
    json_fields,
)
from t5x_style.errors import Fault

RECORDS_AT_ONCE = 1024


class ArrayRecord(FileFormat):
    """Files of ArrayRecord, each record a JSON object."""

    suffixes = (".array_record", ".arrayrecord")

    def cuts(self, path: pathlib.Path, part_bytes: int) -> list[tuple[int | None, int]]:
        """After every `RECORDS_AT_ONCE` records."""
        with _opened(path) as reader:
            total = reader.num_records()
        size = path.stat().st_size
        ends = [*range(RECORDS_AT_ONCE, total, RECORDS_AT_ONCE), total] if total else []
        sizes = [end * size // total for end in ends]
        return [
            (end, after - before)
            for end, after, before in zip(ends, sizes, [0, *sizes], strict=False)
        ]

    def records(self, split: Split, part: Part, on_read: OnRead) -> Iterator[Record]:
        """The records of a part, as bytes."""
        path = pathlib.Path(part.path)
        with _opened(path) as reader:
            size, total = path.stat().st_size, reader.num_records()
            stop = total if part.stop is None else part.stop
            for first in range(part.start, stop, RECORDS_AT_ONCE):
                last = min(first + RECORDS_AT_ONCE, stop)
                for number, data in enumerate(reader.read(first, last), start=first + 1):
                    yield Record(f"{path} record {number}", data)
                on_read(size * last // total - size * first // total)

    def fields(self, record: Record) -> Mapping[str, Any]:
        """The object of a record."""
        return json_fields(record)


class ArrayRecordExample(ArrayRecord):
    """Files of ArrayRecord, each record a tf.train.Example."""

    def fields(self, record: Record) -> Mapping[str, Any]:
        """The features of a record."""
        assert isinstance(record.data, bytes)
        try:
            return example_fields(record.data)
        except BrokenExample as error:
            raise BadRecord(f"{record.place}: no tf.train.Example: {error}") from None


class BrokenExample(Exception):
    """Bytes that are no tf.train.Example."""


def example_fields(data: bytes) -> dict[str, Any]:
    """{name: value} of an Example's features: bytes, float or int, a list of them if not just one.

    Raises:
      BrokenExample: the bytes are no Example, or it has no features.
    """
    from google.protobuf.message import DecodeError

    try:
        features = _example_class().FromString(data).features.feature
    except DecodeError as error:
        raise BrokenExample(str(error)) from None
    if not features:
        raise BrokenExample("it has no features")
    fields = {}
    for name, feature in features.items():
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind else []
        fields[name] = values[0] if len(values) == 1 else values
    return fields


@functools.cache
def _example_class() -> Any:
    """The message of tensorflow/core/example/{example,feature}.proto:

    message Example { Features features = 1; }
    message Features { map<string, Feature> feature = 1; }
    message Feature { oneof kind { BytesList bytes_list = 1; FloatList float_list = 2;
                                   Int64List int64_list = 3; } }
    each list: repeated value = 1
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="example.proto", package="tensorflow", syntax="proto3"
    )

    def add(message: Any, name: str, number: int, kind: int | str, **options: Any) -> None:
        if isinstance(kind, str):
            options["type_name"] = f".tensorflow.{kind}"
            kind = kinds.TYPE_MESSAGE
        label = options.pop("label", kinds.LABEL_OPTIONAL)
        message.field.add(name=name, number=number, type=kind, label=label, **options)

    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    lists = (
        ("BytesList", "bytes_list", kinds.TYPE_BYTES),
        ("FloatList", "float_list", kinds.TYPE_FLOAT),
        ("Int64List", "int64_list", kinds.TYPE_INT64),
    )
    for number, (message, field, kind) in enumerate(lists, start=1):
        add(file.message_type.add(name=message), "value", 1, kind, label=kinds.LABEL_REPEATED)
        add(feature, field, number, message, oneof_index=0)
    features = file.message_type.add(name="Features")
    # A map is a repeated message of keys and values.
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, kinds.TYPE_STRING)
    add(entry, "value", 2, "Feature")
    add(features, "feature", 1, "Features.FeatureEntry", label=kinds.LABEL_REPEATED)
    add(file.message_type.add(name="Example"), "features", 1, "Features")
    # A pool of our own: that of the process has TensorFlow's messages of the same names.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(path))
        yield reader
        # A broken file passes for an empty one; closing it raises the error.
        reader.close()
    except (ValueError, RuntimeError, IndexError) as error:
        raise Fault(f"{path} cannot be read as ArrayRecord: {error}") from error
