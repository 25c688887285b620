"""Makes the datasets of the experiments on CardiacMR and HeadNeckCT, of which there are folders images/ and masks/.

    python benchmarks/quality/datasets.py cardiac -i CardiacMR -d 601 --source bSSFP --target LGE
    python benchmarks/quality/datasets.py dark-blood -i CardiacMR -d 611
    python benchmarks/quality/datasets.py faded -i CardiacMR -d 612
    python benchmarks/quality/datasets.py head-neck -i HeadNeckCT -d 701

``cardiac`` is domain adaptation (MS-CMR 2019, SLAug-style preprocessing): labelled are cases 1 to 10 of the source,
unlabelled 11 to 20 of the target, kept aside with labels 21 to 30 of the target. Equal numbers are probably the same
patient. ``dark-blood`` and ``faded`` are domain generalisation on the same cases: labelled are bSSFP 1 and 2 and LGE 3
and 4, unlabelled bSSFP 5 to 12 and LGE 13 to 20, and kept aside with labels is bSSFP 21 to 30 in an appearance that
neither has, made since a third sequence is not at hand: blood dark and muscle bright, or little contrast between the
two, uneven brightness and noise. With ``--all-labeled`` all unlabelled cases but one are labelled in these three, to
see what labels would be worth; one is left as trainers of two streams need it. ``head-neck`` is class-imbalanced
(OpenKBP): five organs, since a missing one was not contoured. The first seven cases in which all five were are
labelled, the others of that kind kept aside, and the rest is unlabelled. In its folds 1 and 2 one half of the
kept-aside cases is labelled, too, and the other kept aside; the unlabelled ones can't be, as organs are missing in
their labels.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_ad.conversion.case_files import CaseFiles, describe_case
from nnunet_ad.conversion.cases import Case, Role, Volume
from nnunet_ad.conversion.dataset import Dataset, Provenance
from nnunet_ad.conversion.folds import Fold
from nnunet_ad.conversion.processes import conversion_workers
from nnunet_ad.conversion.volumes import map_label_values, read_volume
from nnunet_ad.conversion.writer import write_dataset

ORGANS = {"brainstem": 1, "spinal cord": 2, "right parotid": 3, "left parotid": 4, "mandible": 7}
CHAMBERS = {"background": 0, "myocardium": 1, "left ventricle": 2, "right ventricle": 3}
MS_CMR = Provenance("MS-CMR 2019", "Cardiac MR in two sequences", "", "")


@dataclass(frozen=True)
class Appearance:
    """What bSSFP, where blood is brightest, is made to look like; intensities relative to the 1st to 99th percentile.

    Attributes:
        name: Of the domain.
        before: Relative intensities that are mapped, piecewise linearly,
        after: to these.
        unevenness: Brightness falls from 1 + this to 1 - this from the first to the last column.
        noise: Standard deviation of normal noise.
    """

    name: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    unevenness: float = 0.0
    noise: float = 0.0

    def of(self, volume: Volume, seed: int) -> Volume:
        """Return a volume that is read in this appearance, with noise of a seed."""
        return Volume(volume.file, partial(self._read, volume, seed))

    def _read(self, volume: Volume, seed: int) -> sitk.Image:
        image = volume.read()
        voxels = sitk.GetArrayFromImage(image)
        low, high = np.percentile(voxels, (1, 99))
        mapped = np.interp((voxels - low) / (high - low), self.before, self.after)
        mapped *= np.linspace(1 + self.unevenness, 1 - self.unevenness, mapped.shape[-1])
        mapped += self.noise * np.random.default_rng(seed).standard_normal(mapped.shape)
        result = sitk.GetImageFromArray(mapped.astype(np.float32))
        result.CopyInformation(image)
        return result


DARK_BLOOD = Appearance("dark blood", before=(0, 0.2, 1), after=(0, 1, 0.1))
FADED = Appearance("faded", before=(0, 0.2, 0.5, 1), after=(0, 0.5, 0.75, 1), unevenness=0.3, noise=0.05)


def main() -> None:
    """Write one dataset to ``nnUNet_raw``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    makers = {
        "cardiac": cardiac,
        "dark-blood": partial(unseen, appearance=DARK_BLOOD),
        "faded": partial(unseen, appearance=FADED),
        "head-neck": head_neck,
    }
    parser.add_argument("dataset", choices=makers)
    parser.add_argument("-i", dest="input", type=Path, required=True)
    parser.add_argument("-d", dest="dataset_id", type=int, required=True)
    parser.add_argument("--source", choices=("bSSFP", "LGE"), default="bSSFP", help="of cardiac only")
    parser.add_argument("--target", choices=("bSSFP", "LGE"), default="LGE", help="of cardiac only")
    parser.add_argument("--all-labeled", action="store_true", help="label all cases but one; not of head-neck")
    parser.add_argument("--overwrite", action="store_true")
    arguments = parser.parse_args()
    if arguments.all_labeled and arguments.dataset == "head-neck":
        parser.error(
            "--all-labeled: organs are missing in the labels of head-neck's other cases; see its folds 1 and 2"
        )
    with conversion_workers(None) as workers:
        print(write_dataset(makers[arguments.dataset](arguments), workers, arguments.overwrite))


def cardiac(arguments: argparse.Namespace) -> Dataset:
    """Describe domain adaptation between the two sequences."""
    source, target = arguments.source, arguments.target
    fold = Fold(numbered(source, 1, 10), numbered(target, 21, 30), numbered(target, 11, 20))
    if arguments.all_labeled:
        fold = label_all_but_one(fold)
    return describe(
        arguments,
        name=f"Cardiac_{source}_to_{target}{'_all_labeled' * arguments.all_labeled}",
        labels=CHAMBERS,
        cases=cardiac_cases(fold, arguments.input),
        folds=(fold,),
        provenance=MS_CMR,
        setting="unsupervised domain adaptation",
    )


def unseen(arguments: argparse.Namespace, appearance: Appearance) -> Dataset:
    """Describe domain generalisation from both sequences to a made appearance."""
    fold = Fold(
        numbered("bSSFP", 1, 2) + numbered("LGE", 3, 4),
        numbered("bSSFP", 21, 30),
        numbered("bSSFP", 5, 12) + numbered("LGE", 13, 20),
    )
    if arguments.all_labeled:
        fold = label_all_but_one(fold)
    cases = [
        replace(each, domain=appearance.name, channels=tuple(appearance.of(c, number) for c in each.channels))
        if each.name in fold.val
        else each
        for number, each in enumerate(cardiac_cases(fold, arguments.input))
    ]
    return describe(
        arguments,
        name=f"Cardiac_to_{appearance.name.replace(' ', '_')}{'_all_labeled' * arguments.all_labeled}",
        labels=CHAMBERS,
        cases=cases,
        folds=(fold,),
        provenance=MS_CMR,
        setting="semi-supervised domain generalisation",
        notes=(f"the domain {appearance.name} is made: its images are bSSFP with their intensities changed",),
    )


def label_all_but_one(fold: Fold) -> Fold:
    """Return the fold with all of its unlabelled cases but the last labelled."""
    return replace(fold, train=fold.train + fold.unlabeled[:-1], unlabeled=fold.unlabeled[-1:])


def numbered(sequence: str, first: int, last: int) -> tuple[str, ...]:
    """Return names of cases of a sequence."""
    return tuple(f"{sequence}_{number:02d}" for number in range(first, last + 1))


def cardiac_cases(fold: Fold, root: Path) -> list[Case]:
    """Describe the cases of a fold."""
    sequences = {name: name.partition("_")[0] for name in (*fold.train, *fold.unlabeled, *fold.val)}
    files = {name: case_files(root / sequence, name) for name, sequence in sequences.items()}
    return [case(name, sequence, files, fold.unlabeled, root) for name, sequence in sequences.items()]


def head_neck(arguments: argparse.Namespace) -> Dataset:
    """Describe the class-imbalanced dataset."""
    numbers = sorted(int(path.name.split(".")[0].removeprefix("pt_")) for path in arguments.input.glob("masks/pt_*"))
    files = {f"pt_{number}": case_files(arguments.input, f"pt_{number}") for number in numbers}
    complete = [name for name in files if set(ORGANS.values()) <= values_in(files[name].label)]
    unlabeled = [name for name in files if name not in complete]
    labeled, kept_aside = tuple(complete[:7]), tuple(complete[7:])
    half = len(kept_aside) // 2
    splits = ((labeled, kept_aside), (labeled + kept_aside[:half], kept_aside[half:]))
    splits += ((labeled + kept_aside[half:], kept_aside[:half]),)
    return describe(
        arguments,
        name="HeadNeckCT",
        labels={"background": 0} | {name: value for value, name in enumerate(ORGANS, start=1)},
        cases=[case(name, "CT", files, unlabeled, arguments.input, read_organs) for name in files],
        folds=tuple(Fold(train, val, tuple(unlabeled)) for train, val in splits),
        provenance=Provenance("OpenKBP", "Organs at risk in CT of head and neck", "", ""),
        setting="class-imbalanced semi-supervised",
    )


def describe(arguments: argparse.Namespace, *, cases: Sequence[Case], **what) -> Dataset:
    """Return the dataset; each image is normalised by itself, whatever its modality."""
    return Dataset(arguments.dataset_id, channel_names=("zscore",), cases=tuple(cases), **what)


def case_files(folder: Path, name: str) -> CaseFiles:
    """Return where a case is."""
    return CaseFiles(folder / "images" / f"{name}.nii.gz", folder / "masks" / f"{name}.nii.gz")


def case(
    name: str, domain: str, files: dict[str, CaseFiles], unlabeled: Sequence[str], root: Path, read_label=read_volume
) -> Case:
    """Describe one case; what is not labelled has no label to be read."""
    role = Role.UNLABELED if name in unlabeled else Role.LABELED
    return describe_case(name, role, domain, files[name], root, read_label)


def values_in(file: Path) -> set[int]:
    """Return the values of a label map."""
    return set(np.unique(sitk.GetArrayFromImage(read_volume(file))).tolist())


def read_organs(file: Path) -> sitk.Image:
    """Read a label map with the five organs numbered from 1."""
    new = {value: number for number, value in enumerate(ORGANS.values(), start=1)}
    label = read_volume(file)
    return map_label_values(label, {value: new.get(int(value), 0) for value in values_in(file)})


if __name__ == "__main__":
    sys.exit(main())
