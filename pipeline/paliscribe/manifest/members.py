"""Archives as manifests: the images in a zip or tar, by name as those of a folder, and the samples of a WebDataset."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Final

import pyarrow as pa

from paliscribe.errors import RowError, UsageError
from paliscribe.manifest.blocks import Block, Columns, Listed, Row, Source, in_blocks
from paliscribe.manifest.listing import is_hidden, is_image, kind_of_name, left_out
from paliscribe.manifest.messages import quoted
from paliscribe.manifest.naming import RESERVED
from paliscribe.storage import archives, redacted, split
from paliscribe.storage.zip_members import DEFLATED, LINK, STORED, Member

NAMES_READ: Final = 10_000  # in a block
LOOKED_AT: Final = 100  # members of a tar that tell whether it is a WebDataset
SIDECARS: Final = ("json", "txt", "cls")  # members of a sample that are carried
LONGEST: Final = 4 << 20  # bytes of a sidecar


def archive_members(source: Source) -> Iterator[Block]:
    """The images in an archive. Raises UsageError for one that cannot be read to its end; StorageError."""
    try:
        with archives.opened(source.uri) as (file, found, _, _, _):
            counts: Counter[str] = Counter()
            members = _seen(found, counts)
            head = list(itertools.islice(members, 0 if source.uri.lower().endswith(".zip") else LOOKED_AT))
            if _is_web_dataset(head):
                rows = _samples(source, file, itertools.chain(head, members), counts)
                yield Listed(list(itertools.islice(rows, 1)))  # what a look at the first rows reads
                yield from in_blocks(rows)
            else:
                yield from _images(source, itertools.chain(head, members), counts)
            if words := left_out(counts):
                source.tell(f"manifest {redacted(source.uri)}: {words}")
    except RowError as error:
        raise UsageError(f"manifest {redacted(source.uri)}: cannot be read: {error}") from None


def address(source: Source, name: str) -> str:
    """The address of a member."""
    return f"{'/'.join(split(source.uri))}#{name}"


def _seen(members: Iterable[Member], counts: Counter[str]) -> Iterator[Member]:
    """The files that are not hidden, of each name one: reading gives the last."""
    names: set[int] = set()
    for member in members:
        if member.method == LINK:
            counts["links"] += 1
        elif any(map(is_hidden, member.name.split("/"))):
            counts["hidden"] += 1
        elif (name := hash(member.name)) in names:
            counts["of a name that is there before"] += 1
        else:
            names.add(name)
            yield member


def _images(source: Source, members: Iterator[Member], counts: Counter[str]) -> Iterator[Block]:
    """Blocks of a member's address each; their default ids are the names."""
    start, size = f"{source.name}#" if source.name else "", 16  # the first block is what a look at the first rows reads
    names = _image_names(members, counts)
    while found := list(itertools.islice(names, size)):
        table = pa.table({source.image_column: pa.array([address(source, name) for name in found], pa.string())})
        yield Columns(table, ids=pa.array([f"{start}{name}" for name in found], pa.string()))
        size = NAMES_READ


def _image_names(members: Iterator[Member], counts: Counter[str]) -> Iterator[str]:
    for member in members:
        if is_image(member.name):
            yield member.name
        else:
            counts[kind_of_name(member.name)] += 1


def _is_web_dataset(members: list[Member]) -> bool:
    """Whether a text about an image stands beside it under its key."""
    images = {_key(member.name)[0] for member in members if is_image(member.name)}
    return any(key in images and end in SIDECARS for key, end in (_key(member.name) for member in members))


def _key(name: str) -> tuple[str, str]:
    """A member's key, up to the first dot in its name, and what follows, in lower case."""
    folder, slash, last = name.rpartition("/")
    key, _, end = last.partition(".")
    return folder + slash + key, end.lower()


def _samples(source: Source, file: BinaryIO, members: Iterator[Member], counts: Counter[str]) -> Iterator[Row]:
    """A row for each image of a WebDataset: its key is the id, and the texts of its sample are columns.

    Of a sample with several images, a row's id is the key with the rest of the image's name.
    """
    for key, sample in itertools.groupby(members, lambda member: _key(member.name)[0]):
        carried: Row = {}
        images: list[str] = []
        for member in sample:
            end = _key(member.name)[1]
            if is_image(member.name):
                images.append(member.name)
            elif end in SIDECARS:
                _add(carried, end, _content(source, file, member), source)
            else:
                counts[kind_of_name(member.name)] += 1
        if not images:
            counts["samples without an image"] += 1
        for name in images:
            default = key if len(images) == 1 else name
            given = carried.get(source.id_column)
            yield (
                carried
                | {source.id_column: default if given is None else given}
                | {source.image_column: address(source, name)}
            )


def _content(source: Source, file: BinaryIO, member: Member) -> Any:
    """What a sidecar says: text, a number, or what JSON has. Raises UsageError."""
    at = f"manifest {redacted(source.uri)}: member {quoted(member.name)}"
    if member.size > LONGEST or member.method not in (STORED, DEFLATED):
        raise UsageError(f"{at} has {member.size:,} bytes; at most {LONGEST:,} are carried, of plain files")
    file.seek(member.at)
    try:
        text = file.read(member.size).decode("utf-8-sig")
        return json.loads(text) if member.name.lower().endswith("json") else text
    except UnicodeDecodeError:
        raise UsageError(f"{at} is not UTF-8 text") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{at} is not JSON") from None


def _add(row: Row, end: str, content: Any, source: Source) -> None:
    """Add what a sidecar says. Keys of JSON that have the name of another column are carried as `json_KEY`."""
    if end != "json" or not isinstance(content, dict):
        text = content.strip() if isinstance(content, str) else content
        row[end] = int(text) if end == "cls" and text.isdecimal() and len(text) < 19 else text
        return
    taken = {source.image_column.lower(), *SIDECARS, *RESERVED}
    for name, value in content.items():
        is_id = name == source.id_column != "id"  # the key is the id, unless another column is asked for
        row[f"json_{name}" if name.lower() in taken and not is_id else name] = value
