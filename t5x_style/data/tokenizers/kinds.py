"""The three kinds of vocabulary of a `Tokenizer`, read from the bytes of the file.

A kind has `vocab_size`, `eos_id`, `encode_array`, `decode` and `piece`, as `Tokenizer` describes
them. And:
  pieces(): the bytes of each id in a text, none for control and unknown ids.
  text_ends(text): int64 [tokens], the bytes of `text` before the end of what each of its ids
    stands for, ascending. Two ids of one character may have the same end, but for the last.
  verbatim: the pieces of a text's ids are the text, but for what the vocabulary has no id for. It
    adds nothing and rewrites nothing.
"""

import functools
import itertools
import json
import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from t5x_style.errors import UsageError, did_you_mean

BYTES = "bytes"  # the path of the vocabulary that has no file

# sentencepiece writes a space as this character. One in the text itself would decode to a space,
# so it is encoded as bytes.
SPACE_MARK = "\u2581"
# The lattice of one call needs some 30 bytes a byte of text. So a document of 100 MB is encoded in
# pieces of this many characters.
SEGMENT_CHARACTERS = 1 << 20
# One call of `tokenizers` needs some 120 bytes a byte of text.
JSON_SEGMENT_CHARACTERS = 1 << 18
# The characters before and after a cut whose ids must not depend on it.
CUT_CONTEXT = 200
CUTS_TRIED = 16
POSSIBLE_CUT = re.compile(r"(?<=\S)\n(?=[^\W\d_])|(?<=[^\W\d_])(?= [^\W\d_])")
# How byte-level BPE writes the 256 bytes as visible characters (Radford et al. 2019).
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _VISIBLE]
BYTE_OF_CHARACTER = {chr(byte): byte for byte in _VISIBLE} | {
    chr(256 + number): byte for number, byte in enumerate(_OTHERS)
}
# Names of the end of a document in published tokenizer.json files.
EOS_NAMES = (
    "</s>",
    "<eos>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end▁of▁sentence|>",
    "<｜end▁of▁sentence｜>",
)


class SentencePiece:
    """A sentencepiece `.model`."""

    def __init__(self, path: str, model: bytes):
        """Reads `model`, the bytes of the file `path`.

        Raises:
          UsageError: not a sentencepiece model, or one without EOS.
        """
        import sentencepiece

        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UsageError(
                f"Tokenizer.path = {path!r} is not a sentencepiece model: {error}"
            ) from None
        if self.processor.eos_id() < 0:
            raise UsageError(
                f"Tokenizer.path = {path!r} has no end-of-sentence id, which ends each "
                f"document here: train it with eos_id=1"
            )
        self.vocab_size = self.processor.vocab_size()
        self.eos_id = self.processor.eos_id()
        self._space_mark_ids = np.array(
            [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()],
            np.int32,
        )

    @functools.cached_property
    def verbatim(self) -> bool:
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto.FromString(
            self.processor.serialized_model_proto()
        )
        before, after = proto.normalizer_spec, proto.denormalizer_spec
        rewrites = (before.precompiled_charsmap, after.precompiled_charsmap)
        adds = (before.add_dummy_prefix, before.remove_extra_whitespaces)
        return before.escape_whitespaces and not any((*rewrites, *adds))

    def encode_array(self, text: str) -> np.ndarray:
        if len(text) <= SEGMENT_CHARACTERS and SPACE_MARK not in text:
            return self._ids(text)
        parts = [
            self._space_mark_ids if part == SPACE_MARK else self._ids(part)
            for part in _encoded_parts(text)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def text_ends(self, text: str) -> np.ndarray:
        from sentencepiece import sentencepiece_pb2

        found, before = [np.zeros(0, np.int64)], 0
        for part in _encoded_parts(text):
            if part == SPACE_MARK:
                ends = [1, 2, 3]
            else:
                # The one form with offsets that versions before 0.2.2 have, too.
                encoded = self.processor.encode(part, out_type="serialized_proto")
                pieces = sentencepiece_pb2.SentencePieceText.FromString(encoded).pieces
                ends = [piece.end for piece in pieces]
            found.append(before + np.array(ends, np.int64))
            before += len(part.encode())
        return np.concatenate(found)

    def _ids(self, text: str) -> np.ndarray:
        # Beam's environment has sentencepiece 0.2.1, which returns lists alone.
        as_numpy = getattr(self.processor, "encode_as_numpy", None)
        return as_numpy(text) if as_numpy else _array(self.processor.encode(text))

    def decode(self, ids: list[int]) -> str:
        return self.processor.decode(ids)

    def piece(self, token: int) -> str:
        return self.processor.id_to_piece(token)

    def pieces(self) -> list[bytes]:
        processor = self.processor
        found = [processor.id_to_piece(token) for token in range(self.vocab_size)]
        return [
            bytes([int(piece[3:5], 16)])
            if processor.is_byte(token)
            else b""
            if processor.is_control(token) or processor.is_unknown(token)
            else piece.replace(SPACE_MARK, " ").encode()
            for token, piece in enumerate(found)
        ]


def _encoded_parts(text: str) -> Iterator[str]:
    """The pieces of a text that are encoded one by one: segments, cut at each U+2581."""
    for segment in _segments(text):
        for position, part in enumerate(segment.split(SPACE_MARK)):
            if position:
                yield SPACE_MARK
            if part:
                yield part


def _array(ids: list[int]) -> np.ndarray:
    """The ids as int32: np.array takes three times as long, a quarter of the whole tokenising."""
    return np.frombuffer(struct.pack(f"{len(ids)}i", *ids), np.int32)


def _segments(text: str) -> Iterator[str]:
    """Cuts a long text after a newline, or a space, near the end of each segment."""
    start = 0
    while start < len(text):
        end = start + SEGMENT_CHARACTERS
        if end < len(text):
            cut = max(text.rfind("\n", start, end), -1)
            if cut < 0:
                cut = text.rfind(" ", start + 1, end) - 1
            end = cut + 1 if cut >= start else end
        yield text[start:end]
        start = end


class Bytes:
    """The 256 bytes of UTF-8 with the ids of ByT5 (Xue et al. 2021): 0 pad, 1 EOS, 2 unknown."""

    CONTROL = ("<pad>", "</s>", "<unk>")
    vocab_size = len(CONTROL) + 256
    eos_id = 1
    verbatim = True

    def encode_array(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + len(self.CONTROL)

    def decode(self, ids: list[int]) -> str:
        first = len(self.CONTROL)
        return bytes(token - first for token in ids if token >= first).decode(errors="replace")

    def piece(self, token: int) -> str:
        first = len(self.CONTROL)
        return self.CONTROL[token] if token < first else f"<0x{token - first:02X}>"

    def pieces(self) -> list[bytes]:
        return [b""] * len(self.CONTROL) + [bytes([byte]) for byte in range(256)]

    def text_ends(self, text: str) -> np.ndarray:
        return 1 + np.arange(len(text.encode()))


class Json:
    """A `tokenizer.json` as the library `tokenizers` writes it: byte-level BPE, or Metaspace."""

    def __init__(self, path: str, content: bytes, eos: str | None):
        """Reads `content`, the bytes of the file `path`; `eos` is the token that ends a document.

        Raises:
          UsageError: `tokenizers` is not installed, the file is another one, EOS is not unique, or
            the number of bytes of its pieces cannot be determined.
        """
        try:
            import tokenizers
        except ImportError:
            raise UsageError(
                f"Tokenizer.path = {path!r} is read by the package `tokenizers`: install the extra "
                f"t5x_style[hf]"
            ) from None
        try:
            plain = json.loads(content)
            added = {token["content"]: token for token in plain["added_tokens"]}
            eos = _eos(path, added, eos)
            # A text that spells out a special token is text. `encode_special_tokens` does that for
            # special tokens only, so the end of a document must be one.
            added[eos]["special"] = True
            # It adds special tokens, which are not asked for, and takes spaces out of the offsets.
            plain["post_processor"] = None
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(plain))
            _check_ids(path, plain["added_tokens"], self._tokenizer)
        except UsageError:
            raise
        except Exception as error:  # the library raises plain Exception
            raise UsageError(
                f"Tokenizer.path = {path!r} is not a tokenizer.json: "
                f"{type(error).__name__}: {error}"
            ) from None
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._plain = plain
        self._byte_level = _is_byte_level(path, plain)
        self._cuttable = plain.get("pre_tokenizer") is not None
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.eos_id: int = added[eos]["id"]

    def encode_array(self, text: str) -> np.ndarray:
        parts = [self._encode(segment) for segment in self._segments(text)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def _encode(self, text: str) -> np.ndarray:
        # A batch, because only its fast form leaves out the offsets of tokens.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return _array(encoding.ids)

    def _segments(self, text: str) -> Iterator[str]:
        """Cuts a long text only where that does not change the ids."""
        start = 0
        while self._cuttable and len(text) - start > JSON_SEGMENT_CHARACTERS:
            possible = POSSIBLE_CUT.finditer(text, start + JSON_SEGMENT_CHARACTERS)
            cuts = (match.end() for match in itertools.islice(possible, CUTS_TRIED))
            cut = next((cut for cut in cuts if self._keeps_ids(text, cut)), None)
            if cut is None:
                break
            yield text[start:cut]
            start = cut
        yield text[start:]

    def _keeps_ids(self, text: str, cut: int) -> bool:
        before, after = text[max(cut - CUT_CONTEXT, 0) : cut], text[cut : cut + CUT_CONTEXT]
        apart = np.concatenate([self._encode(before), self._encode(after)])
        return np.array_equal(self._encode(before + after), apart)

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def piece(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or ""

    @functools.cached_property
    def verbatim(self) -> bool:
        model, before = self._plain["model"], json.dumps(self._plain.get("pre_tokenizer"))
        decoder = self._plain["decoder"]
        adds = (
            model.get("end_of_word_suffix"),
            model.get("continuing_subword_prefix"),
            '"add_prefix_space": true' in before,
        )
        rewrites = (self._plain.get("normalizer"), decoder["type"] != "ByteLevel")
        return not any((*adds, *rewrites))

    def text_ends(self, text: str) -> np.ndarray:
        found, before = [np.zeros(0, np.int64)], 0
        for segment in self._segments(text):
            offsets = self._tokenizer.encode(segment, add_special_tokens=False).offsets
            size = len(segment.encode())
            if offsets:
                # The ids of one character have its offsets all of them: it ends with the last.
                ends = np.array([*(start for start, _ in offsets[1:]), offsets[-1][1]])
                ends = np.maximum.accumulate(_byte_offsets(segment)[ends])
                found.append(before + ends)
            before += size
        return np.concatenate(found)

    def pieces(self) -> list[bytes]:
        found = [b""] * self.vocab_size
        for piece, token in self._tokenizer.get_vocab(with_added_tokens=False).items():
            if self._byte_level:
                found[token] = bytes(BYTE_OF_CHARACTER[char] for char in piece)
            elif re.fullmatch("<0x[0-9A-F]{2}>", piece):
                found[token] = bytes([int(piece[3:5], 16)])
            else:
                found[token] = piece.replace(SPACE_MARK, " ").encode()
        for token in self._plain["added_tokens"]:
            found[token["id"]] = b"" if token["special"] else token["content"].encode()
        unknown = self._tokenizer.token_to_id(self._plain["model"].get("unk_token") or "")
        if unknown is not None:
            found[unknown] = b""
        return found


def _byte_offsets(text: str) -> np.ndarray:
    """int64 [characters + 1]: the bytes of UTF-8 before each character, and of all."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _eos(path: str, added: dict[str, Any], asked: str | None) -> str:
    """The added token that ends a document: `asked`, or the one with a known name."""
    if asked is not None:
        if asked not in added:
            raise UsageError(
                f"Tokenizer.eos = {asked!r} is not an added token of {path!r}, which are "
                f"{', '.join(map(repr, added)) or 'none'}{did_you_mean(asked, added)}"
            )
        return asked
    found = [name for name in EOS_NAMES if name in added]
    if len(found) != 1:
        raise UsageError(
            f"Tokenizer.path = {path!r} has {'more than one' if found else 'no'} token known to "
            f"end a document: name it in Tokenizer.eos, among "
            f"{', '.join(map(repr, found or added)) or 'its added tokens, which are none'}"
        )
    return found[0]


def _check_ids(path: str, added: list[dict[str, Any]], tokenizer: Any) -> None:
    """Refuses ids by which the bytes of a piece would be those of another."""
    for token in added:
        found = tokenizer.token_to_id(token["content"])
        if found != token["id"]:
            raise UsageError(
                f"Tokenizer.path = {path!r} gives the added token {token['content']!r} the id "
                f"{token['id']}, and the library `tokenizers` gives it {found}: write that id"
            )
    pieces: dict[int, str] = {}
    for piece, token in tokenizer.get_vocab(with_added_tokens=True).items():
        if token in pieces:
            raise UsageError(
                f"Tokenizer.path = {path!r} gives the id {token} to two pieces, "
                f"{pieces[token]!r} and {piece!r}"
            )
        pieces[token] = piece


def _is_byte_level(path: str, plain: dict[str, Any]) -> bool:
    """Whether a character of a piece is one byte; if not, U+2581 is a space."""
    decoder = plain.get("decoder") or {"type": None}
    parts = decoder.get("decoders", [decoder])
    kinds = [part["type"] for part in parts]
    if "ByteLevel" in kinds:
        return True
    if "Metaspace" in kinds or {"type": "Replace", "pattern": {"String": SPACE_MARK}} in [
        {key: part.get(key) for key in ("type", "pattern")} for part in parts
    ]:
        return False
    raise UsageError(
        f"Tokenizer.path = {path!r} decodes by {', '.join(map(str, kinds))}, for which the "
        f"bytes of a piece are not known; ByteLevel and Metaspace are understood"
    )
