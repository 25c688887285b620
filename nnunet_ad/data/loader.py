"""Batches of labelled and unlabelled patches from one set of worker processes."""

import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgenerators.dataloading.data_loader import DataLoader
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from threadpoolctl import threadpool_limits

from nnunet_ad.data.dataset import UnlabeledDataset


class LabeledDataLoader(nnUNetDataLoader):
    """nnU-Net's loader of labelled patches; an error names the cases of the batch.

    Raises:
        ValueError: On ``next``, if a batch can't be made.
        MemoryError, OSError, RuntimeError: As they come, if memory was short or a disk failed.
    """

    def get_indices(self) -> list[str]:
        """Return the cases of the next batch."""
        self._keys = super().get_indices()
        return self._keys

    def generate_train_batch(self) -> dict:
        """Return nnU-Net's batch."""
        try:
            return super().generate_train_batch()
        except Exception as error:
            if _is_of_the_machine(error):
                raise
            raise ValueError(
                f"no patches from the labelled cases {', '.join(sorted(set(self._keys)))} ({error}): unless that is of "
                f"the augmentation, a preprocessed file of one of them in {self._data.source_folder} is damaged. Run "
                "nnUNetv2_preprocess again."
            ) from error


class UnlabeledDataLoader(nnUNetDataLoader):
    """nnU-Net's patches at random places of random cases, without labels.

    Args:
        data: The unlabelled cases.
        batch_size: Patches a batch.
        patch_size: Size of what is cropped, larger than the final one to leave room for rotation.
        final_patch_size: Size after augmentation.
        label_manager: Of the dataset; the host's constructor asks for it.
        transforms: Augmentation.

    Raises:
        ValueError: On ``next``, if a case can't be read.
        MemoryError, OSError, RuntimeError: As they come, if memory was short or a disk failed.
    """

    def __init__(
        self,
        data: UnlabeledDataset,
        batch_size: int,
        patch_size: list[int],
        final_patch_size: list[int],
        label_manager: LabelManager,
        transforms: BasicTransform,
    ):
        super().__init__(data, batch_size, patch_size, final_patch_size, label_manager, transforms=transforms)
        self.has_ignore = False  # annotated voxels can't be preferred where none is annotated

    def generate_train_batch(self) -> dict:
        """Return ``data``, float32 (B, C, *spatial), and ``keys``, the B cases."""
        keys = self.get_indices()
        with torch.no_grad(), threadpool_limits(limits=1, user_api=None):
            return {"data": torch.stack([self._patch(key) for key in keys]), "keys": keys}

    def _patch(self, key: str) -> torch.Tensor:
        try:
            sample = self._crop(key)
        except Exception as error:
            if _is_of_the_machine(error):
                raise
            raise ValueError(
                f"no patch from the unlabelled case {key} ({error}): its preprocessed files in {self._data.folder} are "
                f"damaged. Delete {key}.pkl there, and the next start makes them anew."
            ) from error
        return self.transforms(**sample)["image"]

    def _crop(self, key: str) -> dict[str, torch.Tensor]:
        image, mask = self._data.load_case(key)
        lower, upper = self.get_bbox(image.shape[1:], force_fg=False, class_locations=None)
        box = [[a, b] for a, b in zip(lower, upper, strict=True)]
        sample = {"image": torch.from_numpy(crop_and_pad_nd(image, box, 0)).float()}
        if mask is not None:
            sample["segmentation"] = torch.from_numpy(crop_and_pad_nd(mask, box, -1)).to(torch.int16)
        return {name: array[:, 0] for name, array in sample.items()} if self.patch_size_was_2d else sample


class TwoStreamDataLoader(DataLoader):
    """One labelled and one unlabelled batch at a time, so that two streams need no second set of workers.

    Args:
        labeled: nnU-Net's loader of labelled patches.
        unlabeled: Loader of unlabelled patches.
    """

    def __init__(self, labeled: nnUNetDataLoader, unlabeled: UnlabeledDataLoader):
        super().__init__(None, labeled.batch_size, 1, None, True, False, True)
        self.labeled = labeled
        self.unlabeled = unlabeled

    def generate_train_batch(self) -> dict:
        """Return nnU-Net's labelled batch with ``unlabeled_data`` and ``unlabeled_keys`` added."""
        labeled = self.labeled.generate_train_batch()
        unlabeled = self.unlabeled.generate_train_batch()
        return {**labeled, "unlabeled_data": unlabeled["data"], "unlabeled_keys": unlabeled["keys"]}


def _is_of_the_machine(error: Exception) -> bool:
    """Return whether memory was short, or a disk or network failed, which is no fault of the data."""
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError) and error.errno is not None
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
