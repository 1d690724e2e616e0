"""Matches file names in tables with the files of a corpus."""

from __future__ import annotations

import posixpath

import pyarrow as pa
import pyarrow.compute as pc

from raysound.corpora.cells import each
from raysound.corpora.vocabulary import ANY_SOUND, has_ending

# Maximum number of parts of a path in a table.
DEEPEST_NAME = 10


def plain_path(name: str | None) -> str | None:
    """Normalizes a path from a table: slashes, no `./`."""
    return None if name is None else posixpath.normpath(name.replace("\\", "/"))


def match_files(values: pa.ChunkedArray, names: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
    """Finds the file of the corpus for each value of a table.

    Paths are relative to the corpus, to the table's folder or to its parent, whichever matches the
    most values. If fewer than half match, a value matches the only sound file whose path ends with
    the value, or with the value without its first folders. A value without a suffix matches the
    sound file of that name.

    Args:
        values: column of the table.
        names: of all files of the corpus.
        folder: folder of the table.

    Returns:
        The name of the file for each value, or null.
    """
    plain = each(values, plain_path, pa.string())
    best = _lookup(values, names, names)
    tried = [best]
    for base in dict.fromkeys(("", folder, posixpath.dirname(folder))):
        below = pc.binary_join_element_wise(base, plain, "/") if base else plain
        tried.append(_lookup(below, names, names))
    best = min(tried, key=lambda found: found.null_count)
    if best.null_count <= len(values) / 2:
        return best
    sounds = names.filter(has_ending(names, ANY_SOUND))
    keys = sounds if pc.any(has_ending(plain, ANY_SOUND)).as_py() else stem(sounds)
    depth = min(pc.max(pc.count_substring(plain, "/")).as_py() + 1, DEEPEST_NAME)
    for dropped in range(depth):
        value = pc.replace_substring_regex(plain, rf"^([^/]*/){{0,{dropped}}}", "")
        found = _by_tail(value, keys, sounds)
        best = min(best, found, key=lambda found: found.null_count)
        if not best.null_count:
            break
    return best


def _by_tail(
    values: pa.ChunkedArray, keys: pa.ChunkedArray, names: pa.ChunkedArray
) -> pa.ChunkedArray:
    """The name whose key ends with the path parts of each value; null if none or several do."""
    found = pa.chunked_array([pa.nulls(len(values), pa.string())])
    parts = pc.add(pc.count_substring(values, "/"), 1)
    for depth in pc.unique(parts.drop_null()).to_pylist():
        if depth <= DEEPEST_NAME:
            tails = pc.replace_substring_regex(
                keys, rf"(?s)^.*?((?:[^/]*/){{{depth - 1}}}[^/]*)$", r"\1"
            )
            of_depth = pc.if_else(pc.equal(parts, depth), values, None)
            found = pc.coalesce(found, _lookup(of_depth, tails, names))
    return found


def _lookup(
    values: pa.ChunkedArray, keys: pa.ChunkedArray, names: pa.ChunkedArray
) -> pa.ChunkedArray:
    """The name whose key equals each value, up to Unicode form and case; otherwise null."""
    found = pa.chunked_array([pa.nulls(len(values), pa.string())])
    for form in (lambda text: text, _composed, lambda text: pc.utf8_lower(_composed(text))):
        if not found.null_count:
            break
        formed = form(keys)
        counts = pc.value_counts(formed)
        unclear = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        wanted = pc.if_else(pc.is_null(found), form(values), None)
        wanted = pc.if_else(pc.is_in(wanted, unclear), None, wanted)
        place = pc.index_in(wanted, formed.combine_chunks())
        place = pc.if_else(pc.is_null(wanted), None, place)
        found = pc.coalesce(found, names.take(place))
    return found


def _composed(text: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.utf8_normalize(text, "NFC")


def stem(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Names without their last suffix."""
    return pc.replace_substring_regex(names, r"\.[^./]*$", "")
