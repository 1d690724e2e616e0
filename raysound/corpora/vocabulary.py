"""File suffixes of sounds, column names of tables, and words for splits in names."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raysound.errors import UserError

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("clip_id", "path", "label", "fold", "split", "group")),
        *((name, pa.int64()) for name in ("size", "modified", "offset")),
    ]
)
# Column names in common data sets, by content; the first existing column is used.
ROLES: dict[str, tuple[str, ...]] = {
    "name": (
        "file_name", "filename", "slice_file_name", "fname", "file", "path", "filepath",
        "file_path", "audio_file", "audio_filename", "audio_path", "audio_filepath", "audio", "wav",
        "wav_file", "wav_path", "wav_filename", "sound_file", "sound", "clip_path", "clip_name",
        "clip", "recording", "track", "note_str", "name", "clip_id", "id", "itemid", "ytid",
    ),
    "label": (
        # Names come before numbers.
        "label_name", "class_name", "category_name", "label", "class_label", "category", "class",
        "primary_label", "scene_label", "event_label", "genre", "genre_top", "species",
        "ebird_code", "word", "command", "keyword", "emotion", "instrument_family_str",
        "instrument", "sound_class", "scene", "event", "labels", "positive_labels", "categories",
        "classes", "tags", "target", "classid", "class_id", "label_id",
    ),
    "fold": ("fold", "folds", "cv_fold", "kfold"),
    "split": ("split", "subset", "partition", "set"),
    "group": ("group", "src_file", "fsid", "freesound_id", "recording_id"),
}  # fmt: skip
# Result of a corpus reader; `name` is relative to the corpus.
FOUND = pa.schema([(name, pa.string()) for name in ("name", "label", "fold", "split", "group")])
# Hidden files are metadata of other programs; macOS writes `._x.wav` for `x.wav`.
HIDDEN = r"(^|/)(\.|__MACOSX/)"
# Formats that libsndfile reads.
AUDIO_SUFFIXES = frozenset(
    [
        ".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3",
        ".mp2", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".sph", ".nist", ".voc",
    ]
)  # fmt: skip
# Sound formats that libsndfile does not read.
UNREAD_SUFFIXES = frozenset(
    [
        ".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".mkv", ".mka", ".webm", ".weba", ".avi",
        ".aac", ".adts", ".wma", ".wmv", ".asf", ".amr", ".awb", ".3gp", ".3g2", ".ape", ".wv",
        ".tta", ".tak", ".shn", ".mpc", ".spx", ".ac3", ".eac3", ".dts", ".dsf", ".dff", ".ra",
        ".rm", ".alac", ".qcp", ".gsm", ".pcm", ".raw", ".mpg", ".mpeg", ".ts", ".flv", ".m4r",
    ]
)  # fmt: skip
ANY_SOUND = AUDIO_SUFFIXES | UNREAD_SUFFIXES
# Common suffixes of files without sound in a corpus.
OTHER_SUFFIXES = frozenset(
    [
        ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".yaml", ".yml",
        ".toml", ".ini", ".cfg", ".xml", ".html", ".htm", ".css", ".js", ".pdf", ".doc",
        ".docx", ".rtf", ".odt", ".xls", ".xlsx", ".ods", ".bib", ".tex", ".log", ".db",
        ".sqlite", ".lock", ".sha1", ".sha256", ".md5", ".png", ".jpg", ".jpeg", ".gif", ".svg",
        ".bmp", ".webp", ".tif", ".tiff", ".ico", ".npy", ".npz", ".pt", ".pth", ".pkl",
        ".pickle", ".h5", ".hdf5", ".mat", ".lab", ".textgrid", ".trn", ".phn", ".wrd", ".cls",
        ".ctm", ".srt", ".vtt", ".lrc", ".jams", ".mid", ".midi", ".py", ".ipynb", ".sh", ".r",
        ".m", ".c", ".asd", ".pek", ".sfk", ".reapeaks", ".cue", ".nfo", ".torrent", ".url",
        ".lnk",
    ]
)  # fmt: skip
SPLITS = ("train", "validation", "test")
# Words that mean a split in a folder name, a column or a file name.
SPLIT_WORDS = {
    "train": "train", "training": "train", "trn": "train",
    "validation": "validation", "validate": "validation", "valid": "validation",
    "val": "validation", "vld": "validation",
    "test": "test", "testing": "test", "tst": "test", "holdout": "test", "heldout": "test",
}  # fmt: skip
# Words whose meaning differs between data sets; see `meaning_of_splits`.
UNCERTAIN_WORDS = {
    "dev": "validation", "development": "validation", "devel": "validation",
    "eval": "test", "evaluation": "test",
}  # fmt: skip
_WORDS = "|".join(sorted({*SPLIT_WORDS, *UNCERTAIN_WORDS}, key=len, reverse=True))
_FILLER = "set|data|dataset|split|subset|audio|clips?|wavs?|files?|sounds?|samples?|recordings?"
_SPLIT_NAME = re.compile(rf"(?:audio|wavs?|sounds?|clips?|data)?({_WORDS})(?:{_FILLER})*")

Warn = Callable[[str], object]
# Suffix → number of files that have it, and the first of them by name.
Tally = dict[str, tuple[int, str]]


class Names(NamedTuple):
    """The number of names, and the smallest; "" if there is none."""

    total: int
    least: str

    @classmethod
    def of(cls, names: pa.ChunkedArray) -> Names:
        """The number and the smallest of some names."""
        return cls(len(names), pc.min(names).as_py() or "")

    def merge(self, other: Names) -> Names:
        """The number and the smallest of both."""
        least = min(filter(None, (self.least, other.least)), default="")
        return Names(self.total + other.total, least)


def quoted(name: str) -> str:
    """A name in quotes, always on one line."""
    return f"'{name}'" if name.isprintable() else repr(name)


def utf8(name: str) -> str:
    """Escapes the bytes of a file name that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names as readable text; at most `most` of them, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def has_ending(names: pa.ChunkedArray, suffixes: Iterable[str]) -> pa.ChunkedArray:
    """True for names that end with one of some suffixes, ignoring case."""
    endings = "|".join(re.escape(suffix[1:]) for suffix in sorted(suffixes))
    return pc.match_substring_regex(names, rf"(?i)\.({endings})$")


def is_sound(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """True for names of readable sound files that are not hidden."""
    return pc.and_not(has_ending(names, AUDIO_SUFFIXES), pc.match_substring_regex(names, HIDDEN))


def tally(names: Iterable[str]) -> Tally:
    """Suffix → number of names that have it, and the first of them."""
    counted: Tally = {}
    for name in names:
        suffix = posixpath.splitext(name)[1].lower()
        count, first = counted.get(suffix, (0, name))
        counted[suffix] = count + 1, min(first, name)
    return counted


def merge_tallies(tallies: Iterable[Tally]) -> Tally:
    """The sum of tallies."""
    merged: Tally = {}
    for counted in tallies:
        for suffix, (count, first) in counted.items():
            before, name = merged.get(suffix, (0, first))
            merged[suffix] = before + count, min(name, first)
    return merged


def unread_sounds(counted: Tally) -> str:
    """A message about sound files in unreadable formats, with the remedy; empty without any."""
    unread = {suffix: found for suffix, found in counted.items() if suffix in UNREAD_SUFFIXES}
    if not unread:
        return ""
    most = max(unread, key=lambda suffix: unread[suffix])
    return (
        f"{_counts(unread)} have an unsupported format: convert them, for example with "
        f"`ffmpeg -i x{most} x.wav`"
    )


def warn_unread(counted: Tally, path: str, warn: Warn) -> None:
    """Warns about files of a folder that are omitted because of their suffixes."""
    if words := unread_sounds(counted):
        warn(f"{path}: {words}")
    unknown = {
        suffix: found
        for suffix, found in counted.items()
        if suffix not in UNREAD_SUFFIXES | OTHER_SUFFIXES | AUDIO_SUFFIXES
    }
    if unknown:
        warn(f"{path}: {_counts(unknown)} are left out: they have no suffix of a sound file")


def _counts(counted: Tally) -> str:
    total = sum(count for count, _ in counted.values())
    ordered = sorted(counted.items(), key=lambda item: (-item[1][0], item[0]))
    kinds = listed((f"{count} {suffix or 'without suffix'}" for suffix, (count, _) in ordered), 5)
    return f"{total} files ({kinds}; for example {quoted(ordered[0][1][1])})"


def plain_name(label: str) -> str:
    """A class name in lower case, with single blanks and in Unicode normal form NFC."""
    return " ".join(unicodedata.normalize("NFC", label).casefold().split())


def split_word(name: str) -> str | None:
    """The split word that a name consists of, such as `training` for `Training_Set`; or None."""
    found = _SPLIT_NAME.fullmatch(re.sub(r"[^a-z0-9]+", "", name.lower()))
    return found[1] if found else None


def split_of_file(name: str) -> str | None:
    """The split word of a file: at the start of its name, as in `train-00000.tar`, or a folder."""
    *folders, file = name.split("/")
    parts = [re.split(r"[-.]", file, maxsplit=1)[0], *reversed(folders)]
    return next(filter(None, map(split_word, parts)), None)


def word_in(name: str) -> str | None:
    """The only split word in a name, such as `test` in `test-other`; otherwise None."""
    words = {word for part in re.split(r"[^a-z]+", name.lower()) if (word := split_word(part))}
    return words.pop() if len(words) == 1 else None


def meaning_of_splits(words: Iterable[str]) -> dict[str, str]:
    """Maps the split words of a corpus to splits.

    `dev` and its variants mean validation if the corpus also has `train`; otherwise they are
    ambiguous, because some data sets use them for training clips. `eval` and its variants mean
    test, but are ambiguous if the corpus also has `test`.

    Args:
        words: values of a column, or names.

    Returns:
        Word → train, validation or test.

    Raises:
        UserError: a word is not a split, or its meaning is ambiguous.
    """
    words = list(words)
    plain = {word: split_word(word) for word in words}
    certain = {SPLIT_WORDS.get(word or "") for word in plain.values()}
    meaning = {}
    for word, base in plain.items():
        if base is None:
            raise UserError(f"{quoted(word)} is not a split: use {', '.join(SPLITS)}")
        meaning[word] = SPLIT_WORDS.get(base) or UNCERTAIN_WORDS[base]
        if base in SPLIT_WORDS:
            continue
        if meaning[word] == "validation" and "train" not in certain:
            raise UserError(
                f"the split {quoted(word)} means validation clips in some data sets and training "
                f"clips in others, and no split is named train: rename it train or validation"
            )
        if meaning[word] == "test" and "test" in certain:
            raise UserError(
                f"the split {quoted(word)} is ambiguous, because another is named test: rename it "
                "validation, or remove one of them"
            )
    return meaning
