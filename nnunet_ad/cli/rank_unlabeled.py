"""``nnunet_ad rank-unlabeled``: which unlabelled case to annotate next."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the sub-command to the parser of ``nnunet_ad``."""
    parser = subparsers.add_parser(
        "rank-unlabeled",
        help="say which unlabelled case to annotate next",
        description="Order unlabelled cases by how much the three decoders of a finished training disagree on them, "
        "and write the order as CSV and a contact sheet as PNG. No label is opened.",
    )
    parser.add_argument("-d", metavar="DATASET", dest="dataset", required=True, help="number or name of the dataset")
    parser.add_argument("-c", metavar="CONFIGURATION", dest="configuration", required=True, help="such as 3d_fullres")
    parser.add_argument("-f", metavar="FOLD", dest="fold", required=True, help='fold of the training, or "all"')
    parser.add_argument(
        "-tr", metavar="TRAINER", dest="trainer", default="nnUNetTrainerAD", help="default: %(default)s"
    )
    parser.add_argument("-p", metavar="PLANS", dest="plans", default="nnUNetPlans", help="default: %(default)s")
    parser.add_argument(
        "-chk", metavar="CHECKPOINT", dest="checkpoint", default="checkpoint_final.pth", help="default: %(default)s"
    )
    parser.add_argument(
        "-i",
        metavar="IMAGES",
        dest="images",
        type=Path,
        help="folder of images to rank instead of the unlabelled cases of the fold, named as in imagesTr/",
    )
    parser.add_argument("-o", metavar="OUT", dest="output", type=Path, required=True, help="folder for the results")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: %(default)s")
    parser.add_argument(
        "--steps", metavar="S", type=int, help="DDIM steps of the decoder ξ (default: those of the training)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise that ξ starts from (default: %(default)s)")
    parser.add_argument(
        "--top", metavar="N", type=int, default=12, help="cases on the contact sheet (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Rank, write the results and print the first cases; return 0.

    Raises:
        RuntimeError: If nnU-Net does not know the dataset.
        ValueError: If there is no such training, no case, or an unreadable image, or if another ranking is being
            written to the folder; one sentence for the user.
        OSError: If the output can't be written.
    """
    import torch
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    from nnunet_ad.evaluation.labels import labels_of_dataset
    from nnunet_ad.ranking import output
    from nnunet_ad.ranking.branches import ThreeDecoders
    from nnunet_ad.ranking.model import TrainedModel
    from nnunet_ad.ranking.rank import rank_cases
    from nnunet_ad.ranking.so_far import key_of, ranking_so_far

    _check_numbers(arguments)
    model = TrainedModel(
        maybe_convert_to_dataset_name(arguments.dataset),
        arguments.configuration,
        arguments.fold,
        arguments.trainer,
        arguments.plans,
        arguments.checkpoint,
        torch.device(arguments.device),
    )
    decoders = ThreeDecoders(model, arguments.steps, arguments.seed)
    labels = labels_of_dataset(model.predictor.dataset_json, "dataset.json of the training")
    structures = {structure.name: structure.values[0] for structure in labels.structures}
    arguments.output.mkdir(parents=True, exist_ok=True)
    with ranking_so_far(arguments.output, key_of(model, decoders)) as so_far:
        output.remove_left_overs(arguments.output)
        dataset = _cases(model, arguments, so_far.images)
        ranking = rank_cases(dataset, decoders, structures, arguments.top, so_far)
        written = output.write(ranking, f"{model.description}; {decoders.description}", arguments.output)
    print(output.as_text(ranking))
    print(f"Written to {arguments.output}: {', '.join(path.name for path in written)}")
    return 0


def _check_numbers(arguments: argparse.Namespace) -> None:
    if arguments.fold != "all" and not arguments.fold.isdecimal():
        raise ValueError(f'-f {arguments.fold}: expected the number of a fold or "all"')
    if arguments.top < 0:
        raise ValueError(f"--top {arguments.top}: expected a number of cases, 0 for no contact sheet")


def _cases(model: Any, arguments: argparse.Namespace, preprocessed: Path) -> Any:
    from nnunet_ad.ranking.cases import cases_of_fold, cases_of_folder

    if arguments.images is None:
        return cases_of_fold(model, arguments.configuration, arguments.fold, preprocessed, print)
    return cases_of_folder(model, arguments.configuration, arguments.images, preprocessed)
