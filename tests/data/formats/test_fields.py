"""Fields of a record by name, nested ones too, and records that a format gives up."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_style.data import FileFormat, Record, Source
from t5x_style.data.formats.format import MissingField, field_value
from t5x_style.data.sources.documents import documents, kept_documents
from t5x_style.errors import Fault


def source_of(folder, *rows, **options):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(name="a", splits={"train": str(folder / "a.jsonl")}, **options)


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"text": 1}, "text", 1),
        ({"doc": {"text": 1}}, "doc.text", 1),
        ({"a": {"b": {"c": 1}}}, "a.b.c", 1),
        # A field that has the dot in its name comes first, at every level.
        ({"doc.text": 1, "doc": {"text": 2}}, "doc.text", 1),
        ({"a": {"b.c": 1, "b": {"c": 2}}}, "a.b.c", 1),
        ({"doc": {"text": None}}, "doc.text", None),
    ],
)
def test_a_dotted_name_is_a_path_unless_a_field_has_that_name(fields, name, value):
    assert field_value(fields, name) == value


@pytest.mark.parametrize(
    ("fields", "name", "message"),
    [
        ({"txt": 1, "id": 2}, "text", "no field 'text'; it has txt, id; did you mean 'txt'?"),
        ({"id": 2}, "doc.text", "no field 'doc.text'; it has id"),
        (
            {"doc": {"txt": 1, "id": 2}, "other": 3},
            "doc.text",
            "no field 'doc.text'; 'doc' has txt, id; did you mean 'txt'?",
        ),
        ({"a": {"b": {}}}, "a.b.c", "no field 'a.b.c'; 'a.b' has no field"),
        ({"doc": "x"}, "doc.text", "no field 'doc.text'; 'doc' is a str, not an object"),
        ({"doc": None}, "doc.text", "no field 'doc.text'; 'doc' is a NoneType, not an object"),
        ({}, "text", "no field 'text'; it has no field"),
    ],
)
def test_the_level_that_fails_is_named_with_its_keys(fields, name, message):
    with pytest.raises(MissingField) as raised:
        field_value(fields, name)
    assert str(raised.value) == message


def test_a_record_of_many_fields_is_not_listed_whole():
    with pytest.raises(MissingField) as raised:
        field_value({f"column {i}": i for i in range(5000)}, "text")
    assert "column 0, column 1, " in str(raised.value)
    assert "4,980 more" in str(raised.value)
    assert len(str(raised.value)) < 400


@given(path=st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=4))
def test_a_value_nested_along_a_path_is_found_by_the_path(path):
    fields = 7
    for key in reversed(path):
        fields = {key: fields}
    assert field_value(fields, ".".join(path)) == 7


def test_text_and_metadata_may_be_nested(tmp_path):
    rows = [
        {"doc": {"text": "one"}, "meta": {"id": 7, "when": "2020", "rights": {"license": "MIT"}}},
        {"doc": {"text": "two"}, "meta": {"id": 8}},
        {"doc": {"text": "three"}},
    ]
    source = source_of(
        tmp_path,
        *rows,
        text_field="doc.text",
        id_field="meta.id",
        date_field="meta.when",
        license_field="meta.rights.license",
    )
    found = [(d.text, d.id, d.date, d.license) for d in kept_documents(source, "train")]
    assert found == [
        ("one", "7", "2020", "MIT"),
        ("two", "8", None, None),
        ("three", None, None, None),
    ]


def test_a_nested_text_that_is_missing_names_line_and_id(tmp_path):
    rows = [{"doc": {"text": "one"}, "m": {"id": 7}}, {"doc": {"body": "two"}, "m": {"id": 8}}]
    source = source_of(tmp_path, *rows, text_field="doc.text", id_field="m.id")
    message = (
        r"a\.jsonl:2 \(m\.id 8\): no field 'doc\.text'; 'doc' has body "
        r"\(text_field of source 'a'\)"
    )
    with pytest.raises(Fault, match=message):
        list(documents(source, "train"))


class Troubled(FileFormat):
    """A format that gives up its second record."""

    def records(self, split, part, on_read):
        yield Record("row 1", {"text": "one"})
        yield Record("row 2", {}, problem="out of range")
        yield Record("row 3", {"text": "three"})


def test_a_record_with_a_problem_is_a_bad_record_alone(tmp_path):
    def of(on_bad_record):
        name = f"{__name__}.Troubled"
        return source_of(tmp_path, format=name, on_bad_record=on_bad_record)

    assert list(documents(of("skip"), "train")) == ["one", "three"]
    with pytest.raises(Fault, match=r"source 'a': row 2: out of range\."):
        list(documents(of("refuse"), "train"))
