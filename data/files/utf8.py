"""Bytes on their way into a parser, known to be UTF-8 text without NUL."""

import codecs
import io
from typing import BinaryIO

from ...core.errors import DataError

_OTHERS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def check_start(file: BinaryIO, name: str) -> tuple[bytes, int]:
    """The first byte of a file that is not blank, and where its text begins (after a UTF-8 mark).

    Raises:
        DataError: the file is empty or blank, or its mark names another encoding than UTF-8.
    """
    head = file.read(4)
    for mark, encoding in _OTHERS:
        if head.startswith(mark):
            raise DataError(f"{name} is {encoding}, not UTF-8; save it as UTF-8")
    start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    file.seek(start)
    while chunk := file.read(2**16):
        if text := chunk.strip():
            return text[:1], start
    raise DataError(f"{name} is empty")


class CheckedText(io.RawIOBase):
    """A file from `start` on, that raises at the first byte that is not UTF-8, or is NUL.

    Parsers differ in what they make of such bytes; this error names the line.
    """

    def __init__(self, file: BinaryIO, name: str, start: int = 0) -> None:
        super().__init__()
        file.seek(start)
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._bytes, self._lines = start, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # pyright: ignore
        """Fill the buffer from the file.

        Raises:
            DataError: the bytes are not UTF-8 or hold a NUL byte; with line and byte.
        """
        data = self._file.read(len(buffer))
        waiting = len(self._decoder.getstate()[0])  # bytes of a character cut by the last chunk
        if (at := data.find(b"\0")) >= 0:
            raise DataError(f"{self._place(data, at)} contains a NUL byte; is this a text file?")
        try:
            self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            place = self._place(data, error.start - waiting)
            raise DataError(f"{place} is not UTF-8; save it as UTF-8") from error
        self._bytes += len(data)
        self._lines += data.count(b"\n")
        buffer[: len(data)] = data
        return len(data)

    def _place(self, data: bytes, at: int) -> str:
        line = self._lines + data.count(b"\n", 0, max(at, 0)) + 1
        return f"{self._name}, line {line}: byte {self._bytes + at} of the file"
