"""A user's own images as they are: what they are found in, how they are read, and what was wrong with them."""

import logging
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from takd.search_spaces import InputError, some
from takd.trainables.datasets.decoding import Decoders, EncodedImages, Survey
from takd.trainables.datasets.division import a_tenth, divided, divided_by_group, held_out
from takd.trainables.datasets.folders import list_folder
from takd.trainables.datasets.listing import Chosen, Listing, Part, check_learned
from takd.trainables.datasets.npz import list_npz
from takd.trainables.datasets.parquet import list_parquet, parquet_files
from takd.trainables.datasets.reading import CONVERSIONS, UNDECODABLE, Reading, as_it_is
from takd.trainables.datasets.sources import ALL, SPLITS, Bytes, Indices, RawSplit, Source
from takd.trainables.datasets.tables import list_table

_PROBED = 64  # images that say what size and colours to expect
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")

log = logging.getLogger("takd")


@dataclass(frozen=True)
class Wishes:
    """What a user asks for with the options of `takd data images`."""

    size: tuple[int, int] | None = None  # width, height; None: as they are
    fit: str | None = None  # of FITS; None: crop
    color: str | None = None  # of COLORS; None: grey where all images are
    split: tuple[float, float, float] | None = None  # fractions for train, validation, test
    table: Path | None = None
    skip_broken: bool = False
    validation: int | None = None  # held out of train; None: a tenth
    keep_encoded: bool = False  # the files' own bytes are kept, and decoded when they are needed

    def given(self) -> dict[str, str]:
        """By option, what the command line has."""
        texts = {
            "size": self.size and "x".join(map(str, self.size)),
            "split": self.split and "/".join(f"{100 * each:g}" for each in self.split),
            "skip_broken": "" if self.skip_broken else None,
            "keep_encoded": "" if self.keep_encoded else None,
        }
        values = {field.name: texts.get(field.name, getattr(self, field.name)) for field in fields(self)}
        return {f"--{name.replace('_', '-')}": str(value) for name, value in values.items() if value is not None}


@contextmanager
def opened_images(place: Path, wishes: Wishes) -> Iterator[Source]:
    """A source for as long as it is read; raises InputError on what is wrong as far as that needs no decoding."""
    if wishes.fit is not None and wishes.size is None:
        raise InputError(f"--fit {wishes.fit}: is for images that --size brings to one size")
    with ExitStack() as stack:
        listing = _listing(stack.enter_context(_unpacked(place)), place, wishes)
        for line in listing.notes:
            log.info("%s", line)
        images = sum(len(part.labels) for part in listing.parts.values())
        decoders = stack.enter_context(Decoders(images))
        probed = _probed(listing) if wishes.size is None or wishes.color is None else None
        if wishes.size is not None:
            width, height = wishes.size
        else:
            assert probed is not None
            width, height = probed.size
        color = wishes.color or ("grey" if probed is not None and probed.grey else "rgb")
        reading = Reading(width, height, wishes.fit or "crop", color)
        yield _Import(str(place), listing, wishes, decoders, reading).source()


def name_of(place: Path) -> str:
    """What a data set is called after."""
    name = place.resolve().name
    if not place.is_file():
        return name
    suffix = next((each for each in _ARCHIVES if name.lower().endswith(each)), place.suffix)
    return name.removesuffix(name[len(name) - len(suffix) :]) if suffix else name


@contextmanager
def _unpacked(place: Path) -> Iterator[Path]:
    """An archive as a folder for a while; anything else as it is."""
    if not place.is_file() or not place.name.lower().endswith(_ARCHIVES):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="takd-") as temporary:
        folder = Path(temporary) / name_of(place)
        try:
            if place.suffix.lower() == ".zip":
                with zipfile.ZipFile(place) as archive:
                    archive.extractall(folder)  # which keeps what is unpacked in the folder
            else:
                with tarfile.open(place) as archive:
                    archive.extractall(folder, filter="data")
        except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, ValueError, RuntimeError) as error:
            raise InputError(f"{place}: can't be unpacked ({error})") from None
        inside = [entry for entry in folder.iterdir() if entry.name != "__MACOSX" and not entry.name.startswith(".")]
        yield inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _listing(folder: Path, place: Path, wishes: Wishes) -> Listing:
    """What there is, and how it is divided."""
    if not place.exists():
        raise InputError(f"--from {place}: there is no such file or folder")
    if wishes.table is not None:
        if not folder.is_dir():
            raise InputError(f"--table {wishes.table}: --from {place} is no folder; expected that of its images")
        listing = list_table(wishes.table, folder)
    elif folder.is_file() and folder.suffix.lower() == ".npz":
        if wishes.keep_encoded:
            raise InputError(f"--keep-encoded: {place} has pixels and no encoded images; leave it out")
        listing = list_npz(folder)
    elif files := parquet_files(folder):
        listing = list_parquet(folder, files)
    elif folder.is_dir():
        listing = list_folder(folder, str(place))
    else:
        raise InputError(
            f"--from {place}: expected a folder of images, an archive of one ({', '.join(_ARCHIVES)}), Parquet files "
            "with images in them, or an .npz of MedMNIST"
        )
    return _checked(_with_splits(listing, place, wishes), place)


def _with_splits(listing: Listing, place: Path, wishes: Wishes) -> Listing:
    """The split that is not there is `val`, as test, or it is asked for."""
    parts = listing.parts
    if wishes.split is not None and wishes.validation is not None:
        raise InputError("--validation: --split says already how many images are for validation")
    if wishes.split is not None:
        if listing.splits - {"train"} and ALL not in listing.splits:
            raise InputError(f"--split: {place} has splits of its own: {', '.join(sorted(listing.splits))}")
        [part] = parts.values()
        return replace(listing, parts={ALL: replace(part, given=None)}, splits=frozenset({ALL}))
    if not listing.splits - {ALL, "train"}:
        raise InputError(f"--from {place}: {listing.undivided or 'has no test split'}; --split 70/15/15 makes splits")
    notes = list(listing.notes)
    splits = set(listing.splits)
    if "test" not in splits:
        held = a_tenth(listing.count("train")) if wishes.validation is None else wishes.validation
        notes.append(
            f"there is no test split: val is the test split, and {held} images of train are held out for validation"
        )
        listing = listing.renamed("validation", "test")
        splits = set(listing.splits)
    if "train" not in splits:
        raise InputError(f"--from {place}: has no training split; it has {', '.join(sorted(splits))}")
    if "validation" in splits and wishes.validation not in (None, listing.count("validation")):
        own = listing.count("validation")
        raise InputError(f"--validation {wishes.validation}: {place} has a validation split of its own, {own} images")
    return replace(listing, notes=tuple(notes))


def _checked(listing: Listing, place: Path) -> Listing:
    if len(listing.classes) < 2:
        what = f"1 class, {listing.classes[0]}" if listing.classes else "no classes"
        raise InputError(f"--from {place}: has {what}; expected 2 or more")
    return listing


@dataclass(frozen=True)
class _Probed:
    size: tuple[int, int]
    grey: bool


def _probed(listing: Listing) -> _Probed:
    """Of some images from all over the source: the size of the first that can be read, and whether all are grey."""
    part = next(iter(listing.parts.values()))
    size, grey = None, True
    for place in np.unique(np.linspace(0, len(part.labels) - 1, _PROBED).astype(int)) if part.seekable else [0]:
        [encoded] = part.images[int(place) : int(place) + 1]
        try:
            image, _ = as_it_is(encoded)
        except UNDECODABLE:
            continue
        size, grey = size or image.size, grey and image.mode == "L"
    return _Probed(size or (1, 1), grey)


@dataclass
class _Import:
    """One reading of all images; where it finds that they must be read otherwise, another follows."""

    place: str  # what a user calls it
    listing: Listing
    wishes: Wishes
    decoders: Decoders
    reading: Reading
    broken: Mapping[str, Mapping[int, str]] = field(default_factory=dict)  # by part, of what is left out: why
    survey: Survey = field(default_factory=Survey)

    def source(self) -> Source:
        return Source(
            read=self.read,
            classes=self.listing.classes,
            validation=self.wishes.validation,
            reading=self.reading,
            judged=self.judged,
            keeps_encoded=self.wishes.keep_encoded,
        )

    def read(self) -> dict[str, RawSplit]:
        return {name: self._raw(name, part) for name, part in self.listing.parts.items()}

    def _raw(self, name: str, part: Part) -> RawSplit:
        kept = self._kept(name)
        whole = len(kept) == len(part.labels)

        def left(of: Any) -> Any:
            return of if whole or not len(of) else Chosen(of, kept)

        images = EncodedImages(
            name, left(part.images), self.reading, self.wishes.size is not None, self.wishes.color is None, self.survey,
            lambda: self.decoders, self.wishes.keep_encoded,
        )  # fmt: skip
        labels, splits = part.labels[kept], self._splits(name, part, kept)
        if name in (ALL, "train"):
            check_learned(self.listing.classes, labels if splits is None else labels[splits == 0], self.place)
        return RawSplit(
            images,
            labels,
            names=left(part.names),
            places=left(part.places),
            splits=splits,
            rows=kept,
            whole=len(part.labels),
        )

    def _kept(self, part: str) -> Indices:
        """The rows of a part that are not left out."""
        return np.setdiff1d(np.arange(len(self.listing.parts[part].labels)), list(self.broken.get(part, {})))

    def _splits(self, name: str, part: Part, kept: Any) -> Bytes | None:
        """What the table says, what --split asks for, or validation where groups must stay together."""
        labels = part.labels[kept]
        if name != ALL:
            return None
        if part.given is None:
            assert self.wishes.split is not None
            if part.groups is None:
                return divided(labels, self.wishes.split)
            return divided_by_group(labels, part.groups[kept], self.wishes.split)
        given = part.given[kept].copy()
        if "validation" in self.listing.splits:
            return given
        train = np.flatnonzero(given == 0)
        if part.groups is None:
            held = held_out(labels[train], self.source())
        else:
            share = (self.wishes.validation or a_tenth(len(train))) / len(train)
            held = np.flatnonzero(divided_by_group(labels[train], part.groups[kept][train], (1 - share, share)))
        given[train[held]] = SPLITS.index("validation")
        return given

    def judged(self) -> Source | None:
        """Says what was found; the source to read instead, None where all is well."""
        survey = self.survey
        if survey.sizes:
            raise InputError(self._sizes())
        broken = {part: dict(self.broken.get(part, {})) for part in self.listing.parts}
        kept = {part: self._kept(part) for part in broken}
        for part, row, why in survey.broken:
            broken[part][int(kept[part][row])] = why
        if survey.broken and not self.wishes.skip_broken:
            raise InputError(
                f"{_count(len(survey.broken), 'image')} can't be read (--skip-broken goes on without): "
                f"{self._named(broken)}"
            )
        if survey.coloured or survey.broken:
            reading = replace(self.reading, color="rgb") if survey.coloured else self.reading
            return _Import(self.place, self.listing, self.wishes, self.decoders, reading, broken).source()
        self._say(broken)
        return None

    def _named(self, broken: Mapping[str, Mapping[int, str]]) -> str:
        return "; ".join(
            f"{self.listing.parts[part].places[row]} ({why})"
            for part, rows in broken.items()
            for row, why in rows.items()
        )

    def _sizes(self) -> str:
        """In one line, which there are and what to do."""
        sizes = self.survey.sizes
        expected = (self.reading.width, self.reading.height)
        images = sum(len(part.labels) for part in self.listing.parts.values())
        sizes[expected] += images - sum(sizes.values()) - len(self.survey.broken)
        common = [f"{width}x{height} ({number:,})" for (width, height), number in sizes.most_common()]
        widths, heights = ([size[side] for size in sizes] for side in (0, 1))
        asked = int(np.median([min(size) for size in sizes.elements()]))
        return (
            f"the images have {len(sizes)} sizes: {some(common)}; {min(widths)} to {max(widths)} wide, "
            f"{min(heights)} to {max(heights)} high; --size {asked}, or another, brings all to one"
        )

    def _say(self, broken: Mapping[str, Mapping[int, str]]) -> None:
        if number := sum(map(len, broken.values())):
            log.warning(
                "%s that can't be read %s left out: %s",
                _count(number, "image"),
                "is" if number == 1 else "are",
                self._named(broken),
            )
        for kind, sentence in CONVERSIONS.items():
            if number := self.survey.conversions[kind]:
                log.info("%s %s", _count(number, "image"), sentence)
        if extreme := self.survey.extreme:
            named = some(f"{self._place(part, row)} ({width}x{height})" for part, row, (width, height) in extreme)
            log.warning(
                "%s of which %dx%d shows little, as they are far smaller or of another shape: %s",
                _count(len(extreme), "image"), self.reading.width, self.reading.height, named,
            )  # fmt: skip

    def _place(self, part: str, row: int) -> str:
        return self.listing.parts[part].places[int(self._kept(part)[row])]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
