"""Text as people's programs write it: UTF-8, or UTF-16 with or without a byte order mark."""

import codecs


def decode(data: bytes) -> str:
    """The text of a file; raises UnicodeDecodeError if it is neither UTF-8 nor UTF-16."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    # In UTF-16, letters and digits of the Latin alphabet have a zero byte each.
    start = data[:200]
    if b"\0" in start:
        return data.decode("utf-16-be" if start[:1] == b"\0" else "utf-16-le")
    return data.decode("utf-8-sig")
