"""Measures what DDIM steps buy: Dice of ξ's pseudo-labels on a fold's validation cases, and time, against S.

Whole preprocessed volumes through nnU-Net's sliding window. The labels score and nothing else. With ``--reuse`` every
second step keeps the features below full resolution of the step before it, and computes the full resolution only.

    python benchmarks/ddim_steps.py -d 101 -c 3d_fullres -f 0 -tr nnUNetTrainerAD -p nnUNetPlans
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from torch import Tensor

from nnunet_ad.evaluation.metrics import dice
from nnunet_ad.network import encoder as encoders
from nnunet_ad.network.network import ADNetwork
from nnunet_ad.ranking.branches import ThreeDecoders
from nnunet_ad.ranking.model import TrainedModel

STEPS = (1, 2, 3, 5, 10, 20)


def main() -> None:
    """Score ξ for each number of steps and print the table."""
    arguments = parse_arguments()
    dataset = maybe_convert_to_dataset_name(arguments.dataset)
    folder = Path(nnUNet_preprocessed.require()) / dataset
    model = TrainedModel(
        dataset,
        arguments.configuration,
        arguments.fold,
        arguments.trainer,
        arguments.plans,
        device=torch.device(arguments.device),
    )
    cases = json.loads((folder / "splits_final.json").read_text())[arguments.fold]["val"]
    stored = folder / model.predictor.configuration_manager.data_identifier
    volumes = infer_dataset_class(str(stored))(str(stored), cases)
    if arguments.reuse:
        reuse_features(model.network)
    print(f"{model.description}, {len(cases)} validation cases, seed {arguments.seed}")
    scores, seconds = {}, {}
    for steps in arguments.steps:
        scores[steps], seconds[steps] = score(ThreeDecoders(model, steps, arguments.seed), volumes, cases)
        print_row(steps, scores, seconds)


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", dest="dataset", required=True)
    parser.add_argument("-c", dest="configuration", default="3d_fullres")
    parser.add_argument("-f", dest="fold", type=int, default=0)
    parser.add_argument("-tr", dest="trainer", default="nnUNetTrainerAD")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda", "mps"))
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reuse", action="store_true", help="keep features below full resolution every second step")
    return parser.parse_args()


def score(decoders: ThreeDecoders, volumes, cases: list[str]) -> tuple[np.ndarray, float]:
    """Return the mean foreground Dice of ξ for each case, and the seconds for all of them."""
    values, start = [], time.perf_counter()
    for case in cases:
        image, label, *_ = volumes.load_case(case)
        prediction = decoders._label_map(decoders.branches["xi"], torch.from_numpy(image[:]))
        classes = [k for k in np.unique(label[:]) if k > 0]
        values.append(np.mean([dice(prediction == k, label[0] == k) for k in classes]))
    return np.array(values), time.perf_counter() - start


def print_row(steps: int, scores: dict[int, np.ndarray], seconds: dict[int, float]) -> None:
    """Print mean and standard deviation over cases, and the difference to the run before it with its standard error."""
    values = scores[steps]
    text = f"S = {steps:>3}: Dice {values.mean():.4f} ± {values.std(ddof=1):.4f}, {seconds[steps]:.1f} s"
    before = list(scores)[-2] if len(scores) > 1 else None
    if before is not None:
        change = values - scores[before]
        error = change.std(ddof=1) / np.sqrt(len(change))
        text += f", {100 * change.mean():+.2f} ± {100 * error:.2f} points against S = {before}"
    print(text, flush=True)


def reuse_features(network: ADNetwork) -> None:
    """Let ξ keep, every second call on an image, what the decoder made below full resolution of the call before."""

    def denoiser(image: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        encoder, decoder = network.encoder, network.denoising_decoder
        image_part, kept = encoder.image_part(image), []

        def predict(noisy_label: Tensor, t: Tensor) -> Tensor:
            if len(kept) == 1:
                skip = full_resolution(network, image_part, noisy_label, t)
                return decoder.classifier(decoder.stages[-1](decoder.upsamplings[-1](kept.pop()) + skip))
            *skips, x = encoder.encode_noisy(image_part, noisy_label, t)
            first, *others = skips
            for upsampling, stage, skip in zip(
                decoder.upsamplings[:-1], decoder.stages[:-1], reversed(others), strict=True
            ):
                x = stage(upsampling(x) + skip)
            kept.append(x)
            return decoder.classifier(decoder.stages[-1](decoder.upsamplings[-1](x) + first))

        return predict

    network.denoiser = denoiser  # type: ignore[method-assign]


def full_resolution(network: ADNetwork, image_part: Tensor, noisy_label: Tensor, t: Tensor) -> Tensor:
    """Return the features of the first stage of the noisy flow."""
    encoder = network.encoder
    convolved = image_part + encoder.label_conv(noisy_label)
    x = encoders._run_behind_convolution(
        encoder.noisy_stem, convolved, encoder.modulations[0], encoder.step_embedding(t)
    )
    return encoders._run_units(encoders._units_after_stem(encoder.image_encoder), x)


if __name__ == "__main__":
    main()
