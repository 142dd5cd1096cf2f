"""Makes names of files and classes safe to print: a terminal obeys nothing that is in them."""

import re

# Control characters other than tab and line break, the marks that reverse the direction of what follows, and
# surrogates, which stand in Python for the bytes of a file's name that are no UTF-8.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BYTES = range(0xDC80, 0xDD00)  # the surrogates of os.fsdecode


def printable(text: str) -> str:
    r"""`text` with escapes such as `\x1b` for what a terminal would obey, or an encoding or a font cannot take."""
    return _HARMFUL.sub(lambda found: _escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    return rf"\x{code - 0xDC00:02x}" if code in _BYTES else character.encode("unicode_escape").decode()
