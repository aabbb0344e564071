"""A PyTorch dataset of a store's slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .store import Split, Store, open_store


class SliceDataset(torch.utils.data.Dataset):
    """Items `(image, embedding, label)` of a store's slices, in the order in which a model takes them.

    image: float32 [c, s, s]; embedding: float32 [256, s/16, s/16], of another encoder than SAM's its channels; label: int64 [s/4, s/4]. With
    `neighbours=1`, for a model with neighbours, the embedding is that of the slices before, at and after in the same case and variant,
    [3, 256, s/16, s/16]; the ends of a case repeat. With `rungs=True`, for a model with a ladder, items are `(image, embedding, rungs, label)`, with
    the slice's own rungs, float32 [rung, c, s/16, s/16]. With `half_labels=True`, for a model with logits at half the image's side, the label is
    [s/2, s/2].

    `variants` says which image of a slice is an item:

    - `"draw"`: one variant, drawn with the probabilities of the published augmentation by PyTorch's generator (so `torch.manual_seed` and a
      loader's `generator` decide);
    - `"all"`: every variant of every slice, `len(slices) · num_variants` items;
    - a variant's name, such as `"identity"`.

    `cases` keeps only the slices of these cases. Works with a DataLoader's workers: each opens the store for itself.
    """

    def __init__(
        self,
        store: str | Path | Store,
        split: str = "train",
        variants: str = "draw",
        cases: list[str] | None = None,
        neighbours: int = 0,
        rungs: bool = False,
        half_labels: bool = False,
        **storage_options: Any,
    ):
        opened = store if isinstance(store, Store) else open_store(store, **storage_options)
        if split not in ("train", "test"):
            raise ValueError(f"split: {split!r}; there are 'train' and 'test'")
        if neighbours not in (0, 1):
            raise ValueError(f"neighbours: {neighbours}; there are 0 and 1")
        self._address, self._options, self._split_name = opened.address, opened._storage_options, split
        self._opened = opened
        of_split = getattr(opened, split)
        if cases is not None and not len(cases):
            raise ValueError(f"cases: expected at least one of {', '.join(of_split.cases)}, or None for all")
        rows = range(len(of_split)) if cases is None else [row for case in cases for row in of_split.rows(case)]
        self._around = _around(of_split) if neighbours else None
        if rungs and of_split.rungs is None:
            raise ValueError(f"rungs: {opened.address} has none; `sam-ladder precompute --rungs` makes a store with rungs")
        self._rungs = rungs
        if half_labels and of_split.half_labels is None:
            raise ValueError(f"half_labels: {opened.address} has none; `sam-ladder precompute --half-labels` adds them")
        self._half_labels = half_labels
        names = of_split.variant_names
        if variants not in ("draw", "all", *names):
            raise ValueError(f"variants: {variants!r}; there are 'draw', 'all', {', '.join(map(repr, names))}")
        chosen = range(len(names)) if variants in ("draw", "all") else [names.index(variants)]
        # Of fewer variants than the table has (test slices), the probabilities are those among them.
        probabilities = opened.variants["probability"].to_numpy()[: len(names)]
        self._probabilities = torch.from_numpy(probabilities / probabilities.sum()) if variants == "draw" else None
        self._items = [(row, None) for row in rows] if variants == "draw" else [(row, v) for row in rows for v in chosen]

    @property
    def store(self) -> Store:
        """The store, opened by this process."""
        if self._opened is None:
            self._opened = open_store(self._address, **self._options)
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        row, variant = self._items[index]
        if variant is None:
            variant = int(torch.multinomial(self._probabilities, 1))
        split = getattr(self.store, self._split_name)
        image = split.images[row, variant].reshape(split.image_channels, *split.images.shape[-2:])
        labels = split.half_labels if self._half_labels else split.labels
        label = labels[row, variant].astype(np.int64)
        embedding = split.embeddings[row if self._around is None else self._around[row], variant]
        rungs = [split.rungs[row, variant]] if self._rungs else []
        return tuple(torch.from_numpy(part) for part in (image, embedding, *rungs, label))


def _around(split: Split) -> list[list[int]]:
    """For each row the rows before, at and after it in its case, whose ends repeat."""
    cases, rows = split.slices["case"].to_numpy(), range(len(split))
    return [[other if other in rows and cases[other] == cases[row] else row for other in (row - 1, row, row + 1)] for row in rows]
