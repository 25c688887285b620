"""Times ``nnunet_ad evaluate`` against medpy on label maps of the size of LASeg, in one run and on the same cores.

Both get the same files, the same number of processes and the same four metrics (Dice, Jaccard, HD95, ASSD), and reading
counts on both sides. medpy works on the whole volumes, as the public evaluation scripts of the field call it; its
processes are started before the clock, ours after it.

    python benchmarks/metrics.py --pairs 20 --processes 2
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunet_ad.evaluation.evaluate import evaluate

SHAPE = (88, 142, 194)  # z, y, x: the typical crop of LASeg
SPACING = 0.625  # mm
METRICS = ("Dice", "Jaccard", "HD95", "ASSD")


def main() -> None:
    """Make the label maps, time both, check that they agree, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of these counts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        voxels = [write_pair(folder, index) for index in range(arguments.pairs)]
        print(f"{arguments.pairs} pairs of {SHAPE} voxels, {min(voxels)} to {max(voxels)} in the reference")
        ours, ours_time = fastest(partial(score_with_us, folder, arguments.processes), arguments.repeats)
        with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            score_with_medpy(folder, pool, limit=arguments.processes)
            theirs, theirs_time = fastest(partial(score_with_medpy, folder, pool), arguments.repeats)
    print(f"largest difference of a metric: {np.abs(ours - theirs).max():.1e}")
    print(f"nnunet_ad evaluate: {ours_time:.2f} s, medpy: {theirs_time:.2f} s, {arguments.processes} processes each")
    print(f"ratio: {ours_time / theirs_time:.3f} (goal: below 0.2)")


def write_pair(folder: Path, index: int) -> int:
    """Write a rounded body with thin outgrowths and a perturbed copy of it; return its number of voxels."""
    rng = np.random.default_rng(index)
    coarse = ndimage.zoom(
        rng.normal(size=(9, 14, 19)), [n / m for n, m in zip(SHAPE, (9, 14, 19), strict=True)], order=1
    )
    grid = np.indices(SHAPE) - np.reshape(SHAPE, (3, 1, 1, 1)) / 2
    radius = np.sqrt((grid**2 / np.reshape((24.0, 34.0, 40.0), (3, 1, 1, 1)) ** 2).sum(axis=0))
    reference = radius + 0.15 * coarse < 1
    prediction = np.roll(radius + 0.18 * coarse < 1.05, (1, -2, 2), axis=(0, 1, 2))
    for which, mask in (("prediction", prediction), ("reference", reference)):
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing((SPACING,) * 3)
        (folder / which).mkdir(exist_ok=True)
        sitk.WriteImage(image, str(folder / which / f"case_{index:02d}.nii.gz"), useCompression=True)
    return int(reference.sum())


def score_with_us(folder: Path, processes: int) -> np.ndarray:
    """Return metrics of every case, shape (cases, metrics)."""
    result = evaluate([folder / "prediction"], folder / "reference", processes=processes, progress=False)
    return np.array([[case.scores[0].values[metric] for metric in METRICS] for case in result.runs[0].cases])


def score_with_medpy(folder: Path, pool: ProcessPoolExecutor, limit: int | None = None) -> np.ndarray:
    """Return the same by medpy, of the first ``limit`` cases."""
    paths = [(path, folder / "reference" / path.name) for path in sorted((folder / "prediction").iterdir())]
    return np.array(list(pool.map(score_pair_with_medpy, paths[:limit])))


def score_pair_with_medpy(paths: tuple[Path, Path]) -> list[float]:
    """Read one pair and return its four metrics."""
    from medpy.metric import binary  # here, because our processes import this file, too, and the clock is running

    prediction, reference = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) > 0 for path in paths)
    spacing = (SPACING,) * 3
    return [
        binary.dc(prediction, reference),
        binary.jc(prediction, reference),
        binary.hd95(prediction, reference, voxelspacing=spacing),
        binary.assd(prediction, reference, voxelspacing=spacing),
    ]


def fastest(function: Callable[[], np.ndarray], repeats: int) -> tuple[np.ndarray, float]:
    """Return a function's result and the shortest of several times that it took, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return result, min(times)


if __name__ == "__main__":
    main()
