"""One process of a training that torch's own launcher spreads over GPUs and machines.

``torchrun --standalone --nproc_per_node 2 -m nnunet_ad.train`` takes the arguments of ``nnUNetv2_train``, and does in
each process what nnU-Net does with ``-num_gpus``, but on several machines, too, and without GPUs.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import record

from nnunet_ad.network.checkpoint import check_complete, load_checkpoint
from nnunet_ad.trainer.interruption import TIME_LIMIT_VARIABLE
from nnunet_ad.trainer.two_stream import nnUNetTrainerTwoStream

_BACKENDS = {"cuda": "nccl", "cpu": "gloo"}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with the arguments of ``nnUNetv2_train``; only the default of ``-tr`` is another."""
    parser = argparse.ArgumentParser(
        prog="torchrun … -m nnunet_ad.train",
        description="Train nnUNetTrainerAD in processes that torchrun starts, with the arguments of nnUNetv2_train.",
    )
    parser.add_argument("dataset_name_or_id", help="name or number of the dataset")
    parser.add_argument("configuration", help="such as 3d_fullres")
    parser.add_argument("fold", help='number of the fold, or "all"')
    parser.add_argument("-tr", default="nnUNetTrainerAD", help="trainer (default: %(default)s)")
    parser.add_argument("-p", default="nnUNetPlans", help="plans (default: %(default)s)")
    parser.add_argument("-pretrained_weights", metavar="FILE", help="checkpoint whose weights the training starts from")
    parser.add_argument("-num_gpus", type=int, default=1, help="not used here: torchrun's --nproc_per_node says it")
    parser.add_argument("--npz", action="store_true", help="save softmax predictions of the final validation")
    parser.add_argument("--c", action="store_true", help="continue from the latest checkpoint")
    parser.add_argument("--val", action="store_true", help="only run the final validation")
    parser.add_argument("--val_best", action="store_true", help="validate checkpoint_best instead of checkpoint_final")
    parser.add_argument("--disable_checkpointing", action="store_true", help="write no checkpoints")
    parser.add_argument("-device", default="cuda", help="cuda or cpu (default: %(default)s)")
    return parser


@record
def main(argv: Sequence[str] | None = None) -> None:
    """Train and validate; every process of the job calls this.

    Raises:
        ValueError: If the arguments do not go together or the process was not started by torchrun.
    """
    arguments = build_parser().parse_args(argv)
    _check(arguments)
    trainer_class = recursive_find_trainer_class_by_name(arguments.tr)
    if not issubclass(trainer_class, nnUNetTrainerTwoStream):
        raise ValueError(
            f"-tr {arguments.tr}: nnunet_ad.train takes trainers that use unlabelled cases, such as nnUNetTrainerAD; "
            "for other trainers use nnUNetv2_train -num_gpus"
        )
    distributed.init_process_group(_BACKENDS[arguments.device])
    _train_and_validate(arguments)
    distributed.destroy_process_group()


def _check(arguments: argparse.Namespace) -> None:
    missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name not in os.environ]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} not set: start this with torchrun --standalone --nproc_per_node N -m "
            "nnunet_ad.train, or train in one process with nnUNetv2_train"
        )
    if arguments.num_gpus != 1:
        raise ValueError(f"-num_gpus {arguments.num_gpus}: give the number of processes to torchrun, --nproc_per_node")
    if arguments.device not in _BACKENDS:
        raise ValueError(f"-device {arguments.device}: several processes train on cuda or cpu only")
    if arguments.fold != "all" and not arguments.fold.isdecimal():
        raise ValueError(f'fold {arguments.fold}: expected a number or "all"')
    if arguments.c and (arguments.val or arguments.pretrained_weights):
        raise ValueError("--c continues a training; it goes neither with --val nor with -pretrained_weights")
    if arguments.val_best and arguments.disable_checkpointing:
        raise ValueError("--val_best needs the checkpoints that --disable_checkpointing leaves out")
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        _check_restarts(arguments)
    if arguments.device == "cuda":
        _take_gpu(int(os.environ["LOCAL_RANK"]))


def _check_restarts(arguments: argparse.Namespace) -> None:
    # The store keeps the addresses of the processes that have died, and new ones may wait for these.
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ValueError(
            "--max_restarts: a restarted job could wait for processes that are gone; start torchrun with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, and with --standalone or --rdzv_backend c10d"
        )
    if not arguments.c and not arguments.val:
        raise ValueError("--max_restarts needs --c among the arguments, or a restarted job would begin anew")
    if TIME_LIMIT_VARIABLE in os.environ:
        raise ValueError(
            f"--max_restarts: torchrun would restart what {TIME_LIMIT_VARIABLE} has stopped; leave one of them out"
        )


def _take_gpu(local_rank: int) -> None:
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this machine finds {torch.cuda.device_count()} GPU(s); start torchrun with "
            "--nproc_per_node of at most that, or add -device cpu"
        )
    torch.cuda.set_device(local_rank)
    torch.backends.cudnn.benchmark = True


def _train_and_validate(arguments: argparse.Namespace) -> None:
    trainer = get_trainer_from_args(
        arguments.dataset_name_or_id,
        arguments.configuration,
        arguments.fold if arguments.fold == "all" else int(arguments.fold),
        arguments.tr,
        arguments.p,
        arguments.c,
        torch.device(arguments.device),
    )
    trainer.disable_checkpointing = arguments.disable_checkpointing
    maybe_load_checkpoint(trainer, arguments.c, arguments.val)
    if arguments.pretrained_weights and not arguments.val:
        _load_pretrained(trainer, Path(arguments.pretrained_weights))
    if not arguments.val:
        trainer.run_training()
    if arguments.val_best:
        trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_best.pth"))
    trainer.perform_actual_validation(arguments.npz)


def _load_pretrained(trainer: nnUNetTrainerTwoStream, file: Path) -> None:
    """Start from the weights of another training; the host's own function takes the rank for the number of a GPU.

    As there, the file may have weights that the network has not.
    """
    checkpoint = load_checkpoint(file)
    check_complete(checkpoint, file)
    trainer.initialize()
    weights = checkpoint["network_weights"]
    own = trainer.bare_network.state_dict()
    for name, weight in own.items():
        found = tuple(weights[name].shape) if name in weights else "no such weights"
        if found != tuple(weight.shape):
            raise ValueError(
                f"{file} is of another network: {name} has shape {tuple(weight.shape)} here, found {found}. Expected "
                "weights of the same plans, configuration and classes, see nnunet_ad import-weights."
            )
    trainer.bare_network.load_state_dict({name: weights[name] for name in own})


if __name__ == "__main__":
    main()
