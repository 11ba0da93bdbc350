"""The Lightning data module for a COCO folder."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler
from torchvision.transforms import v2

from kd.coco import CocoDetection, DataError, Labels, collate
from kd.sampling import GroupedBatchSampler, LateDataLoader, aspect_ratio_groups


class CocoDataModule(pl.LightningDataModule):
    """A COCO folder: ``train2017/ val2017/ annotations/instances_{train,val}2017.json``, each name overridable.

    Args:
        root: folder that the other paths are relative to.
        train_images, val_images: image folders.
        train_annotations, val_annotations: annotation files; name another file here to train on, say, one category.
        batch_size: training images per step and process.
        eval_batch_size: images per evaluation step and process.
        workers: loading processes per training process; 0 loads in the training process itself.
        labels: "coco" (category ids as they are, for detectors with 91 classes) or "contiguous" (1..K).
        flip: probability of a horizontal flip in training.
        aspect_ratio_grouping: batches of alike aspect ratio.
        seed: seed of order and augmentation.
        train_limit, val_limit: use only so many images, the first ones of the file.

    Raises:
        DataError: when set up, if anything on disk is missing or wrong; it names the file.
    """

    def __init__(
        self,
        root: str,
        *,
        train_images: str = "train2017",
        val_images: str = "val2017",
        train_annotations: str = "annotations/instances_train2017.json",
        val_annotations: str = "annotations/instances_val2017.json",
        batch_size: int = 8,
        eval_batch_size: int = 1,
        workers: int = 4,
        labels: Labels = "coco",
        flip: float = 0.5,
        aspect_ratio_grouping: bool = True,
        seed: int = 0,
        train_limit: int | None = None,
        val_limit: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= flip <= 1:
            raise ValueError(f"flip: got {flip}, expected a probability in [0, 1]")
        if batch_size < 1 or eval_batch_size < 1 or workers < 0:
            raise ValueError(
                f"batch_size, eval_batch_size, workers: got {batch_size}, {eval_batch_size}, {workers}, "
                "expected at least 1, 1, 0"
            )
        self.root = Path(root)
        self.train_paths = (self.root / train_images, self.root / train_annotations)
        self.val_paths = (self.root / val_images, self.root / val_annotations)
        self.batch_size, self.eval_batch_size, self.workers = batch_size, eval_batch_size, workers
        self.labels: Labels = labels
        self.flip, self.aspect_ratio_grouping, self.seed = flip, aspect_ratio_grouping, seed
        self.train_limit, self.val_limit = train_limit, val_limit
        self.train: CocoDetection | None = None
        self.val: CocoDetection | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read and check the annotation files; called by Lightning in every process."""
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: no such folder; data.root is the COCO folder (train2017/ val2017/ annotations/)"
            )
        if stage in (None, "fit") and self.train is None:
            self.train = CocoDetection(
                *self.train_paths,
                training=True,
                labels=self.labels,
                transform=v2.RandomHorizontalFlip(self.flip),
                limit=self.train_limit,
            )
        if self.val is None:
            self.val = CocoDetection(*self.val_paths, labels=self.labels, limit=self.val_limit)
        if self.train is not None and self.train.categories != self.val.categories:
            raise DataError(f"{self.train_paths[1]} and {self.val_paths[1]} list different categories")

    def train_dataloader(self) -> DataLoader:
        """Batches of the current epoch, without those that a resumed run has already trained on."""
        assert self.train is not None, "setup('fit') comes first"
        count = len(self.train)
        ratios = [self.train.aspect_ratio(i) for i in range(count)] if self.aspect_ratio_grouping else [1.0] * count
        rank, world_size = _rank_and_world_size()
        sampler = GroupedBatchSampler(
            aspect_ratio_groups(ratios),
            self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            reshuffle=self.trainer is None or not self.trainer.overfit_batches,
        )
        return self._loader(self.train, batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        """Every validation image; with several processes a share each (the evaluation drops repeated images)."""
        assert self.val is not None, "setup() comes first"
        rank, world_size = _rank_and_world_size()
        sampler: SequentialSampler | DistributedSampler = SequentialSampler(self.val)
        if world_size > 1:
            sampler = DistributedSampler(self.val, world_size, rank, shuffle=False)
        return self._loader(self.val, sampler=sampler, batch_size=self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        """The validation images: COCO's test annotations are not public."""
        return self.val_dataloader()

    def _loader(self, dataset: CocoDetection, **options: object) -> DataLoader:
        return LateDataLoader(
            dataset,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            # Its own generator: creating an iterator must not draw from the global one (resumed runs stay equal).
            generator=torch.Generator().manual_seed(self.seed),
            **options,
        )


def _rank_and_world_size() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
