"""Which images make up which batch: seeded, grouped by aspect ratio, the same for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Sampler

from kd.coco import DataError, Draw


class GroupedBatchSampler(Sampler[list[Draw]]):
    """Batches of images of alike aspect ratio, so that little of a batch is padding.

    A *global* batch holds ``batch_size * world_size`` images; process ``rank`` gets its share of each. The sequence of
    global batches depends on ``seed`` and epoch only, so two processes with batch 4 see what one with batch 8 sees.

    Args:
        groups: per image the number of its group; all equal for no grouping.
        batch_size: images per batch and process.
        seed: seed of the order and of the augmentation.
        rank, world_size: this process and how many there are.
        reshuffle: another order every epoch; False repeats the first epoch's (to overfit a few batches on purpose).

    Raises:
        DataError: a global batch is larger than the data set.
        ValueError: a number out of range.
    """

    def __init__(
        self,
        groups: Sequence[int],
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        reshuffle: bool = True,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size, rank, world_size: got {batch_size}, {rank}, {world_size}")
        if len(groups) < batch_size * world_size:
            raise DataError(
                f"batch_size: {batch_size} on {world_size} processes needs {batch_size * world_size} training images, "
                f"the data set has {len(groups)}; use a smaller batch"
            )
        self.groups = torch.as_tensor(groups)
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.reshuffle = reshuffle
        self.epoch = 0
        # Lightning looks for set_epoch at batch_sampler.sampler.
        self.sampler = self
        self.skip = 0
        """Batches left out of the next epoch's beginning: those that a resumed run has already trained on."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.groups) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        skip, self.skip = self.skip, 0
        for batch in self._global_batches()[skip:]:
            yield batch[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]

    def _global_batches(self) -> list[list[Draw]]:
        epoch = self.epoch if self.reshuffle else 0
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.groups), generator=generator)
        seeds = torch.randint(2**62, (len(self.groups),), generator=generator)
        size = self.batch_size * self.world_size
        whole, rest = [], []
        for group in self.groups.unique():
            members = order[self.groups[order] == group]
            cut = len(members) // size * size
            whole += list(members[:cut].view(-1, size))
            rest.append(members[cut:])
        # What no group could fill makes mixed batches; less than one batch is dropped, another one every epoch.
        mixed = torch.cat(rest)
        whole += list(mixed[: len(mixed) // size * size].view(-1, size))
        return [
            [Draw(int(i), int(seeds[i])) for i in whole[k]] for k in torch.randperm(len(whole), generator=generator)
        ]


class LateDataLoader(DataLoader):
    """A data loader that asks its sampler for the order when the first batch is taken, not when ``iter()`` is called.

    Lightning calls ``iter()`` before it knows the epoch and batch at which a resumed run goes on.
    """

    def __iter__(self) -> Iterator:
        yield from super().__iter__()


def aspect_ratio_groups(ratios: Sequence[float], bins_per_octave: int = 3) -> list[int]:
    """Group number of every width / height ratio: ``bins_per_octave`` logarithmic bins from 1/2 to 2 (torchvision's
    reference training uses three)."""
    edges = 2 ** torch.linspace(-1, 1, 2 * bins_per_octave + 1)
    return torch.bucketize(torch.tensor(ratios, dtype=edges.dtype), edges, right=True).tolist()
