"""A store of `sam-ladder precompute` as NumPy arrays and pandas tables. docs/reference/store-format.md describes it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import zarr

from .errors import StoreError

FORMAT_VERSION = 2


def open_store(path: str | Path, **storage_options: Any) -> Store:
    """Opens a store for reading: a folder, or an address that fsspec knows (`s3://bucket/store.zarr`, with fsspec's `storage_options`).

    Raises StoreError if there is no store, if it is unfinished, or if it has another format version.
    """
    address = str(path)
    try:
        root = zarr.open_group(address, mode="r", storage_options=storage_options or None)
    except FileNotFoundError as error:
        raise StoreError(f"{address}: there is no store here") from error
    version = root.attrs.get("format_version")
    if version is None:
        raise StoreError(f"{address}: this Zarr group is not a store of sam-ladder: it has no attribute format_version")
    if version != FORMAT_VERSION:
        raise StoreError(f"{address}: format version {version}; this package reads version {FORMAT_VERSION}")
    if not root.attrs.get("complete"):
        raise StoreError(f"{address}: the store is unfinished; the command `sam-ladder precompute` that began it resumes it")
    return Store(address, root, storage_options)


class Store:
    """A complete store. `train` and `test` have its tensors; all else is in its attributes and tables."""

    def __init__(self, address: str, root: zarr.Group, storage_options: dict[str, Any]):
        self.address = address
        #: the Zarr group itself
        self.zarr = root
        self._storage_options = storage_options

    def __repr__(self) -> str:
        config = self.config
        cases = f"{len(self.train.cases)} + {len(self.test.cases)} cases"
        return f"<Store {self.address}: {config['encoder']}, {config['image_size']} px, {config['dtype']}, {cases}>"

    @property
    def config(self) -> dict[str, Any]:
        """The settings of `precompute` that shape a tensor."""
        return dict(self.zarr.attrs["config"])

    @property
    def cache_id(self) -> str:
        """SHA-256 of the config and the sources."""
        return str(self.zarr.attrs["cache_id"])

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, the background first: `class_names[label]`."""
        return ["background", *self.config["class_names"]]

    @property
    def regions(self) -> dict[str, list[int]]:
        """Unions of classes that losses and scores are over, by name; none if each class is by itself."""
        return {region["name"]: region["classes"] for region in self.config.get("regions", ())}

    @property
    def rung_blocks(self) -> list[int]:
        """The blocks of the encoder, from 0, after which tokens are stored as `rungs`; none in a store without rungs."""
        return list(self.config.get("rungs", ()))

    @property
    def num_classes(self) -> int:
        """Classes, including the background."""
        return len(self.class_names)

    @cached_property
    def variants(self) -> pandas.DataFrame:
        """A row per variant of a training slice: `variant`, `name`, `kind`, …, `probability`."""
        return self._table("variants.parquet")

    @cached_property
    def train(self) -> Split:
        """The training cases."""
        return Split(self, "train")

    @cached_property
    def test(self) -> Split:
        """The test cases."""
        return Split(self, "test")

    def _table(self, path: str) -> pandas.DataFrame:
        if "://" in self.address:
            import fsspec

            with fsspec.open(f"{self.address}/{path}", **self._storage_options) as file:
                return pandas.read_parquet(io.BytesIO(file.read()))
        return pandas.read_parquet(Path(self.address) / path)


class Split:
    """The tensors of the training or of the test cases. Rows are slices, grouped by case, in ascending order within a case."""

    def __init__(self, store: Store, name: str):
        self.store, self.name = store, name
        #: the Zarr group itself
        self.zarr: zarr.Group = store.zarr[name]
        images = self.zarr["images"]
        #: channels of an image
        self.image_channels: int = 1 if images.ndim == 4 else images.shape[2]
        #: channels of the embeddings: 256 of SAM's encoders, of others the width of a token
        self.embedding_channels: int = int(self.zarr["embeddings"].shape[2])
        #: [slice, variant, channel, grid, grid]: the image encoder's output
        self.embeddings = Values(self, "embeddings", slice(0, self.embedding_channels))
        #: [slice, variant, y, x], or [slice, variant, channel, y, x] with two or three channels: what the encoder saw, in about [0, 1]
        self.images = Values(self, "images", slice(self.embedding_channels, self.embedding_channels + self.image_channels))
        rungs = self.zarr.get("rungs")
        first = self.embedding_channels + self.image_channels
        #: [slice, variant, rung, channel, grid, grid]: the encoder's tokens after the blocks `store.rung_blocks`; None in a store without rungs
        self.rungs: Values | None = None if rungs is None else Values(self, "rungs", slice(first, first + rungs.shape[2] * rungs.shape[3]))
        #: [slice, variant, y, x] at a quarter of the image's side: uint8 classes
        self.labels = Values(self, "labels", None)
        #: [slice, variant, y, x] at half the image's side: uint8 classes; None in a store without them
        self.half_labels: Values | None = Values(self, "labels_half", None) if "labels_half" in self.zarr else None

    def __len__(self) -> int:
        """The number of slices."""
        return int(self.zarr["labels"].shape[0])

    def __repr__(self) -> str:
        return f"<Split {self.name} of {self.store.address}: {len(self)} slices × {self.num_variants} variants>"

    @property
    def num_variants(self) -> int:
        """Variants of each slice; the first is the slice itself."""
        return int(self.zarr["labels"].shape[1])

    @property
    def variant_names(self) -> list[str]:
        """Names of the variants, by index."""
        return self.store.variants["name"].tolist()[: self.num_variants]

    @cached_property
    def slices(self) -> pandas.DataFrame:
        """A row per slice: `row`, `case`, `slice_index`, spacing, size, `voxels_<organ>`, source."""
        return self.store._table(f"{self.name}/slices.parquet")

    @cached_property
    def scans(self) -> pandas.DataFrame:
        """A row per case: `shape`, `affine`, `axes`, `spacing_mm`, … of its file."""
        return self.store._table(f"{self.name}/scans.parquet")

    @cached_property
    def cases(self) -> list[str]:
        """Names of the cases, in the order of their rows."""
        return self.slices["case"].unique().tolist()

    def rows(self, case: str) -> range:
        """The rows of a case's slices. Raises KeyError if the split lacks the case."""
        rows = self.slices.loc[self.slices["case"] == case, "row"]
        if rows.empty:
            raise KeyError(f"{self.store.address}: {self.name} has no case {case!r}; it has {', '.join(self.cases)}")
        return range(int(rows.iloc[0]), int(rows.iloc[-1]) + 1)

    @property
    def masks(self) -> Mapping[str, np.ndarray]:
        """Reference segmentations at the scan's own resolution by case: uint8 [depth, height, width], read when asked for."""
        return _Masks(self)


class _Masks(Mapping):
    def __init__(self, split: Split):
        self._split, self._group = split, split.zarr["masks"]

    def __getitem__(self, case: str) -> np.ndarray:
        where = f"{self._split.store.address}: {self._split.name}/masks/{case}"
        mask = _read(lambda: self._group[case][:], where)
        _refuse_missing(mask, (1, 2), lambda index: f"{where}, slice {index[0]}")
        return mask

    def __iter__(self) -> Iterator[str]:
        return iter(self._split.cases)

    def __len__(self) -> int:
        return len(self._split.cases)


class Values:
    """An array of a split. Indexing reads, and returns float32 values, or uint8 classes of `labels`.

    `values[row, variant]` is one tensor. Both may be slices or lists of integers, too (then every row is read with every variant), and further
    indices choose within the tensors. A read costs one chunk per row and variant. Raises StoreError if a chunk is missing.
    """

    def __init__(self, split: Split, name: str, channels: slice | None):
        self._split, self._name, self._channels = split, name, channels
        #: the Zarr array itself, in the store's number format
        self.zarr: zarr.Array = split.zarr[name]
        self._encoding = self.zarr.attrs.get("encoding")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.zarr.shape

    @property
    def ndim(self) -> int:
        return self.zarr.ndim

    @property
    def dtype(self) -> np.dtype:
        """Of what indexing returns."""
        return np.dtype(np.uint8 if self._channels is None else np.float32)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<{self._split.name}/{self._name} {self.shape} {self.dtype}>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self[:]
        return values if dtype is None else values.astype(dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        if Ellipsis in [part for part in index if part is Ellipsis]:
            at = next(i for i, part in enumerate(index) if part is Ellipsis)
            missing = self.ndim - (len(index) - 1)
            index = (*index[:at], *[slice(None)] * missing, *index[at + 1 :])
        if len(index) > self.ndim:
            raise IndexError(f"{self!r} has {self.ndim} axes, and was given {len(index)} indices")
        row, variant, *inner = *index, *[slice(None)] * (2 - len(index))
        rows, variants = self._positions(row, 0), self._positions(variant, 1)
        where = f"{self._split.store.address}: {self._split.name}/{self._name}"
        stored = _read(lambda: self.zarr.oindex[rows, variants], f"{where}, slices {_few(rows)}")
        axes = tuple(range(2, self.ndim))
        _refuse_missing(stored, axes, lambda at: f"{where}, slice {rows[at[0]]}, variant {variants[at[1]]}")
        values = self._decode(stored, rows, variants)
        # Integers drop their axis.
        outer = (0 if np.ndim(row) == 0 and not isinstance(row, slice) else slice(None),)
        outer += (0 if np.ndim(variant) == 0 and not isinstance(variant, slice) else slice(None),)
        return values[(*outer, *inner)]

    def _positions(self, index: Any, axis: int) -> np.ndarray:
        """The positions that an index names, all within the axis."""
        size = self.shape[axis]
        if isinstance(index, slice):
            return np.arange(size)[index]
        positions = np.atleast_1d(np.asarray(index))
        if positions.dtype == bool:
            if positions.shape != (size,):
                raise IndexError(f"{self!r}: a mask of {positions.shape} for {size} {('slices', 'variants')[axis]}")
            return np.flatnonzero(positions)
        if positions.size and not np.issubdtype(positions.dtype, np.integer):
            raise IndexError(f"{self!r}: {index!r} is not an index")
        positions = positions.astype(np.int64)
        outside = positions[(positions < -size) | (positions >= size)]
        if outside.size:
            raise IndexError(f"{self!r}: there is no {('slice', 'variant')[axis]} {outside[0]}; the axis has {size}")
        return positions % size

    def _decode(self, stored: np.ndarray, rows: np.ndarray, variants: np.ndarray) -> np.ndarray:
        if self._channels is None:
            return stored
        if self._encoding == "bfloat16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        if self._encoding == "quantized":
            pairs = self._split.zarr["quantization"].oindex[rows, variants, self._channels]  # [rows, variants, channels, 2]
            pairs = pairs.reshape(*pairs.shape[:3], 1, 1, 2)
            codes = stored.reshape(*stored.shape[:2], -1, *stored.shape[-2:]).astype(np.float32)
            return (pairs[..., 1] + pairs[..., 0] * codes).reshape(stored.shape)
        return stored.astype(np.float32)


def _read(read: Callable[[], np.ndarray], where: str) -> np.ndarray:
    """What zarr reads. Its errors for damaged chunks do not say where they are."""
    try:
        return read()
    except Exception as error:
        raise StoreError(f"{where}: {error}; `sam-ladder verify` finds what is damaged, and --repair writes it again") from error


def _few(rows: np.ndarray) -> str:
    """At most five numbers."""
    return ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")


def _refuse_missing(values: np.ndarray, axes: tuple[int, ...], where: Any) -> None:
    """zarr returns the fill value where a chunk is missing; no chunk that was written has it throughout."""
    filled = np.isnan(values) if values.dtype.kind == "f" else values == np.iinfo(values.dtype).max
    if values.dtype == np.uint16:
        filled = (values & 0x7FFF) > 0x7F80  # NaN in bfloat16's bits
    if not values.size:
        return
    missing = np.argwhere(filled.all(axis=axes))
    if missing.size:
        raise StoreError(f"{where(tuple(missing[0]))}: the chunk is missing; `sam-ladder verify --repair` writes it again")
