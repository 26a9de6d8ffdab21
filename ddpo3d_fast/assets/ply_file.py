"""The ply format: a header that lists elements and their properties, and a body that holds them one by one.

Whatever the elements mean is another file's business. Source: G. Turk, The PLY Polygon File Format, 1994.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpo3d_fast.errors import InputError

_HEADER_LIMIT = 1 << 20  # bytes; a real header has about 1,500
_COUNT_DIGITS = 18  # of a number of rows
TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_INTEGERS = {name: kind for name, kind in TYPES.items() if kind[0] in "iu"}
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


class Property(NamedTuple):
    """One column of an element, or a list in each of its rows."""

    name: str
    kind: str  # numpy's name of the type, without the byte order
    length_kind: str = ""  # of the number that stands before a list; empty where it is none


class Element(NamedTuple):
    """A table."""

    name: str
    rows: int
    properties: list[Property]

    @property
    def scalars(self) -> list[Property]:
        return [entry for entry in self.properties if not entry.length_kind]


class PlyFile(NamedTuple):
    """A ply file whose header has been read."""

    path: Path
    data: bytes
    byte_order: str  # "<" or ">"; empty for ascii
    elements: dict[str, Element]  # in the file's order
    body: int  # where it begins in data

    def read(self, *names: str) -> list[dict[str, np.ndarray]]:
        """The columns [count] of these elements by name, lists left out; of ascii files all are float64.

        Raises:
            InputError: the body is too short for them, or is damaged; one line that names the file. Sizes are
                checked before anything is allocated.
        """
        tables: dict[str, dict[str, np.ndarray]] = {}
        words = [] if self.byte_order else self.data[self.body :].split()
        position = self.body if self.byte_order else 0
        for element in self.elements.values():
            if self.byte_order:
                columns, position = _take_binary(self, element, position)
            else:
                columns, position = _take_ascii(self, element, words, position)
            if element.name in names:
                tables[element.name] = columns
            if len(tables) == len(names):
                break
        return [tables[name] for name in names]


def open_ply(path: Path, data: bytes) -> PlyFile:
    """Reads the header of a file's content. Raises InputError, one line that names the file, for a damaged
    one or a file of another kind."""
    if data[:3] != b"ply":
        raise InputError(f"{path}: not a ply file: it does not begin with 'ply'")
    end = re.search(rb"\nend_header[ \t]*\r?\n", data[:_HEADER_LIMIT])
    if not end:
        raise InputError(f"{path}: corrupt ply header: no end_header")
    byte_order: str | None = None
    elements: dict[str, Element] = {}
    # Split as bytes: some letters of a comment would count as ends of lines.
    for line in data[: end.start()].splitlines()[1:]:
        words = line.decode("utf-8", errors="replace").split()
        properties = next(reversed(elements.values())).properties if elements else None
        match words:
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", name, "1.0"] if name in _FORMATS:
                byte_order = _FORMATS[name]
            case ["element", name, number] if number.isdecimal() and len(number) <= _COUNT_DIGITS:
                if name in elements:
                    raise InputError(f"{path}: corrupt ply header: element {name[:60]} twice")
                elements[name] = Element(name, int(number), [])
            case ["property", kind, name] if kind in TYPES and properties is not None:
                properties.append(Property(name, TYPES[kind]))
            case ["property", "list", length, kind, name] if (
                length in _INTEGERS and kind in TYPES and properties is not None
            ):
                properties.append(Property(name, TYPES[kind], TYPES[length]))
            case _:
                raise InputError(f"{path}: corrupt ply header: {' '.join(words)[:60]!r}")
    if byte_order is None:
        raise InputError(f"{path}: corrupt ply header: no format line")
    for element in elements.values():
        found: set[str] = set()
        for entry in element.properties:
            if entry.name in found:
                raise InputError(f"{path}: corrupt ply header: property {entry.name[:60]} twice")
            found.add(entry.name)
    return PlyFile(path, data, byte_order, elements, end.end())


def _too_short(ply: PlyFile, element: Element, needed: str, got: int) -> InputError:
    rows = "vertices" if element.name == "vertex" else f"rows of element {element.name[:60]}"
    return InputError(f"{ply.path}: truncated: {element.rows} {rows} need {needed}, got {got}")


def _take_binary(ply: PlyFile, element: Element, start: int) -> tuple[dict[str, np.ndarray], int]:
    """The columns of an element that begins at `start`, and where the next one begins."""
    dtype = np.dtype([(entry.name, ply.byte_order + entry.kind) for entry in element.scalars])
    least = element.rows * sum(
        np.dtype(entry.length_kind or entry.kind).itemsize for entry in element.properties
    )
    if len(ply.data) - start < least:
        raise _too_short(ply, element, f"{least} bytes", len(ply.data) - start)
    data, end = ply.data, start + least
    if len(element.scalars) < len(element.properties):
        data, end = _without_lists(ply, element, start)
        start = 0
    if not element.scalars:
        return {}, end
    rows = np.frombuffer(data, dtype=dtype, count=element.rows, offset=start)
    return {entry.name: rows[entry.name] for entry in element.scalars}, end


def _without_lists(ply: PlyFile, element: Element, start: int) -> tuple[bytes, int]:
    """The rows of an element as they would be without their lists, and where the next element begins."""
    runs: list[tuple[int, struct.Struct, int]] = []  # bytes before a list, its length, bytes of an item
    before = 0
    for entry in element.properties:
        size = np.dtype(entry.kind).itemsize
        if entry.length_kind:
            runs.append((before, struct.Struct(ply.byte_order + np.dtype(entry.length_kind).char), size))
            before = 0
        else:
            before += size
    data, kept, position = ply.data, list[bytes](), start
    for _ in range(element.rows):
        for size, length, item in runs:
            kept.append(data[position : position + size])
            position += size
            if len(data) - position < length.size:
                raise _too_short(ply, element, "more bytes", len(data) - start)
            items = length.unpack_from(data, position)[0]
            if items < 0:
                raise InputError(f"{ply.path}: corrupt element {element.name[:60]}: a list of {items}")
            position += length.size + items * item
        kept.append(data[position : position + before])
        position += before
        if position > len(data):
            raise _too_short(ply, element, "more bytes", len(data) - start)
    return b"".join(kept), position


def _take_ascii(
    ply: PlyFile, element: Element, words: list[bytes], start: int
) -> tuple[dict[str, np.ndarray], int]:
    """As `_take_binary`, of the words of an ascii body."""
    least = element.rows * len(element.properties)
    if len(words) - start < least:
        raise _too_short(ply, element, f"{least} numbers", len(words) - start)
    kept, end = words[start : start + least], start + least
    try:
        if len(element.scalars) < len(element.properties):
            kept, end = _words_without_lists(element, words, start)
        numbers = np.array(kept, dtype=np.float64)
    except IndexError:
        raise _too_short(ply, element, "more numbers", len(words) - start) from None
    except ValueError as error:
        raise InputError(f"{ply.path}: corrupt {element.name[:60]}: {str(error)[:100]}") from None
    table = numbers.reshape(element.rows, len(element.scalars))
    return {entry.name: table[:, index] for index, entry in enumerate(element.scalars)}, end


def _words_without_lists(element: Element, words: list[bytes], start: int) -> tuple[list[bytes], int]:
    """As `_without_lists`. Raises ValueError for a damaged list, IndexError where words are missing."""
    kept, position = list[bytes](), start
    for _ in range(element.rows):
        for entry in element.properties:
            word = words[position]
            position += 1
            if not entry.length_kind:
                kept.append(word)
            elif (items := int(word)) < 0:
                raise ValueError(f"a list of {items}")
            else:
                position += items
    if position > len(words):
        raise IndexError
    return kept, position
