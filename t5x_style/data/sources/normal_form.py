"""The form in which two texts are compared: what a reader cannot see is no difference."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

DIGEST_BYTES = 16
# Of the normal form, the digest and the words. Stores cleaned by another version are built again.
COMPARISON_VERSION = 2

# The code points that Unicode calls default ignorable: they have no shape of their own
# (DerivedCoreProperties.txt, Default_Ignorable_Code_Point). Among them are the byte-order mark, the
# zero-width spaces, the marks of direction, the variation selectors and the tags.
# ZERO WIDTH (NON-)JOINER are among them too. They shape letters of Persian or Hindi, but a keyboard
# or a web page that lacks them writes the same word.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
# Scripts that are written without spaces between words. Lines may break between any two characters
# (classes ID, CJ and SA of UAX #14). Hangul is not among them: Korean has spaces.
UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff\u19e0-\u19ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b"  # radicals and numerals of Han
    "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"  # kana
    "\u3105-\u312f\u31a0-\u31bf"  # Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\ua000-\ua4cf\U00016fe0-\U00018dff\U0001b170-\U0001b2ff"  # Yi, Tangut, Khitan, Nushu
)
# The punctuation of these scripts: no word, and white space beside it is a line break, too.
WIDE_PUNCTUATION = "\u3000-\u303f\uff01-\uff65"

_INVISIBLE = re.compile(f"[{INVISIBLE}]")
# A word that was broken at the end of a line.
_SOFT_HYPHEN = re.compile("\u00ad\\s*")
_WIDE = f"[{UNSPACED}{WIDE_PUNCTUATION}]"
_BROKEN_LINE = re.compile(f" (?:(?<={_WIDE} )|(?={_WIDE}))")
# For the texts without them, which are most, white space is a matter of bytes.
_INVOLVED = re.compile(f"[{INVISIBLE}]|{_WIDE}|\\s")
# Latin letters and the signs of a printed page are in the normal form, whatever is beside them.
_COMPOSED = "\u00a1-\u00ac\u00ae-\u02ff\u2010-\u2027\u2030-\u205e\u20a0-\u20bf\u2122"
_MAY_COMPOSE = re.compile(f"[^{_COMPOSED}]")
_ASCII = bytes(range(128))
_TO_SPACES = bytes(ord(" ") if chr(i).isspace() and i < 128 else i for i in range(256))


def normal_form(text: str) -> str:
    """The text in Normalization Form C, without invisible characters.

    A soft hyphen goes together with the white space after it. Other white space, case and
    punctuation stay.
    """
    if text.isascii():
        return text
    beyond = _beyond_ascii(text.encode())
    if not _MAY_COMPOSE.search(beyond):
        return text
    if _INVISIBLE.search(beyond):
        # Before the normal form, since an invisible character keeps a letter and its accent apart.
        text = _INVISIBLE.sub("", _SOFT_HYPHEN.sub("", text))
    return unicodedata.normalize("NFC", text)


def _beyond_ascii(text: bytes) -> str:
    """The characters beyond ASCII. In most texts they are few, and soon searched."""
    return text.translate(None, _ASCII).decode()


def is_invisible(character: str) -> bool:
    """Whether `normal_form` leaves a character out."""
    return _INVISIBLE.match(character) is not None


def document_digest(text: str) -> bytes:
    """16 bytes of BLAKE2b over the normal form of a text, by which equal documents are known.

    White space is made one space, and none at the ends. Beside a character of a script without
    spaces it is left out: there it is a line break.

    Some two of 10^9 documents share a digest by chance with a probability of 10^-21.
    """
    return document_digests([text])[0]


def document_digests(texts: Sequence[str]) -> list[bytes]:
    """`document_digest` of each text. Many at once are faster than one after the other."""
    plain = [_in_normal_form(text) for text in texts]
    joined = b"".join(plain).translate(_TO_SPACES)
    characters = np.frombuffer(joined, np.uint8)
    is_space = characters == ord(" ")
    repeated = np.zeros_like(is_space)
    # A space that begins a text may go with the end of the one before: at an end there is none.
    np.logical_and(is_space[1:], is_space[:-1], out=repeated[1:])
    joined = characters[~repeated].tobytes()
    digests = []
    first = begin = 0
    for text in plain:
        last = first + len(text)
        end = begin + len(text) - int(np.count_nonzero(repeated[first:last]))
        content = joined[begin:end].strip()
        digests.append(hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest())
        first, begin = last, end
    return digests


def _in_normal_form(text: str) -> bytes:
    """The text without what a digest ignores, but for repeated white space and that at the ends."""
    plain = text.encode()
    if not text.isascii():
        beyond = _beyond_ascii(plain)
        if _INVOLVED.search(beyond):
            return _BROKEN_LINE.sub("", " ".join(normal_form(text).split())).encode()
        if _MAY_COMPOSE.search(beyond):
            return unicodedata.normalize("NFC", text).encode()
    return plain
