"""Score θ, ψ and ξ (by DDIM) of a finished training on the fold's validation cases, whole volumes, preprocessed grid.

Usage: python score_decoders.py DATASET CONFIGURATION FOLD TRAINER PLANS
"""

import json
import sys
from pathlib import Path

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_ad.evaluation.metrics import dice
from nnunet_ad.ranking.branches import DECODERS, ThreeDecoders
from nnunet_ad.ranking.model import TrainedModel


def main(dataset: str, configuration: str, fold: str, trainer: str, plans: str) -> None:
    """Print the Dice of the foreground of each decoder for each case, and the means."""
    name = maybe_convert_to_dataset_name(int(dataset))
    folder = Path(nnUNet_preprocessed.require()) / name
    cases = json.loads((folder / "splits_final.json").read_text())[int(fold)]["val"]
    model = TrainedModel(name, configuration, int(fold), trainer, plans)
    decoders = ThreeDecoders(model)
    identifier = model.predictor.configuration_manager.data_identifier
    labeled = nnUNetDatasetBlosc2(str(folder / identifier), cases)
    scores = []
    for case in cases:
        image, label, _, _ = labeled.load_case(case)
        maps = decoders.predict(image[:])
        scores.append([dice(one > 0, label[0] > 0) for one in maps])
        print(case, *(f"{d} {value:.4f}" for d, value in zip(DECODERS, scores[-1], strict=True)), flush=True)
    for decoder, mean, sd in zip(DECODERS, np.mean(scores, 0), np.std(scores, 0, ddof=1), strict=True):
        print(f"mean Dice of {decoder} over {len(cases)} cases: {mean:.4f} ± {sd:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
