"""What a file is that is neither lines nor text, and a line that is no JSONL, with the way out.

A kind is recognised by bytes that no file of lines or text begins with, never by its name.
"""

import re

BOM = b"\xef\xbb\xbf"
# The mark of tar ends within them.
HEAD_BYTES = 512
# The first bytes, by the suffixes of archives that are read.
ARCHIVES = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
# How a file begins, what it is, and what to do with it. Where a mark is made of letters, the bytes
# after it are part of the pattern.
KINDS = (
    (re.escape(ARCHIVES[".gz"]), "a gzip archive", "end its name in .gz"),
    (re.escape(ARCHIVES[".zst"]), "a zstd archive", "end its name in .zst"),
    (rb"BZh[1-9](1AY&SY|\x17rE8P)", "a bzip2 archive", "unpack it, or pack it as .gz or .zst"),
    (rb"\xfd7zXZ\0", "an xz archive", "unpack it, or pack it as .gz or .zst"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive (.docx, .xlsx and .epub are, too)", "unpack it"),
    (rb"(?s:.{257})ustar(  )?\0", "a tar archive", "unpack it"),
    (rb"PAR1\x15", "a Parquet file", "set Source.format = 'parquet'"),
    (rb"ARROW1\0\0", "an Arrow file", "write it as Parquet, or as a Hugging Face dataset"),
    (rb"%PDF-\d", "a PDF", "extract its text"),
    (rb"version https://git-lfs\.", "a Git LFS pointer", "fetch the file: git lfs pull"),
)


def foreign_kind(head: bytes) -> tuple[str, str] | None:
    """(what a file is that begins with `head`, what to do with it); None for lines and texts."""
    return next(((kind, way) for mark, kind, way in KINDS if re.match(mark, head)), None)


def is_wide(data: bytes) -> bool:
    """Whether bytes are UTF-16 or UTF-32: by a byte-order mark, or as every second byte is NUL."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        return True
    head = data[:HEAD_BYTES]
    even, odd = head[::2], head[1::2]
    return len(head) >= 16 and ((all(even) and not any(odd)) or (all(odd) and not any(even)))


WIDE = "text in UTF-16 or UTF-32: `iconv -f UTF-16 -t UTF-8 FILE > NEW` converts it"


def advice_on_line(line: bytes) -> str:
    """What a line is that is no JSON object, as `; …`; empty if nothing is known of it."""
    line = line.strip()
    if is_wide(line):
        return f"; the file is {WIDE}"
    if line.startswith(BOM):
        return "; there is a byte-order mark within the file, where files were joined: remove it"
    if line.startswith(b"["):
        return "; a JSON array is no JSONL: `jq -c '.[]' FILE > NEW` writes an object a line"
    if line.startswith(b"{") and line.endswith((b"{", b"[", b",")):
        return "; an object over several lines is no JSONL: `jq -c . FILE > NEW` writes one a line"
    if b"\r" in line:
        return "; the lines end in CR alone: `tr '\\r' '\\n' < FILE > NEW` mends them"
    return ""
