"""Two processes on the CPU do what one would do on the joint batch, each on its part of it."""

import json
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from planned_dataset import DATASET, PATHS, PLANS, set_paths
from torch import distributed, multiprocessing
from torch.multiprocessing import ProcessExitedException

from nnunet_ad.augmentation.cutmix import cutmix
from nnunet_ad.config import ADConfig
from nnunet_ad.diffusion import encode_labels
from nnunet_ad.pseudo_label import plain_sum
from nnunet_ad.trainer import (
    mean_teacher,
    nnUNetTrainerAD,
    nnUNetTrainerAD_1epoch,
    nnUNetTrainerAD_NoDecoupling,
    nnUNetTrainerAD_NoDiffusion,
    nnUNetTrainerCPS,
    nnUNetTrainerMeanTeacher,
)
from nnunet_ad.trainer import trainer as trainer_module
from nnunet_ad.trainer.processes import add_over_processes_, joint_sum, own_device

NUM_STEPS = 3
CPU = torch.device("cpu")


def start_gloo(folder: Path, name: str, rank: int, num_processes: int = 2) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=num_processes)


# ------------------------------------------------------------------------------------------- what the processes run


class OwnPart:
    """A process takes its own patches of the joint batch."""

    def own_part(self, joint: torch.Tensor) -> torch.Tensor:
        return joint[self.local_rank :][:1] if self.is_ddp else joint


class KnownNoise(OwnPart, nnUNetTrainerAD):
    """Noise and boxes of the joint batch, of which a process takes its own patches; without Gumbel noise."""

    config = replace(ADConfig(), rampup_epochs=0, num_sampling_steps=2)

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = CPU):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.ensemble = plain_sum
        self.joint_noise = torch.Generator().manual_seed(3)

    def _normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        return self.own_part(torch.randn((2, *shape[1:]), generator=self.joint_noise).double())

    def noise_labels(self, y: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if not self.config.diffusion:
            return None, None
        t = self.own_part(torch.randint(self.diffusion.num_steps, (2,), generator=self.joint_noise))
        y_0 = encode_labels(y, self.num_classes).double()
        return self.diffusion.noise_labels(y_0, t, self._normal(y_0.shape)), t

    def train_step(self, batch: dict) -> dict[str, torch.Tensor]:
        with patch.object(trainer_module, "cutmix", self.paste_known_boxes):
            return super().train_step(batch)

    def paste_known_boxes(self, images, labels, donors, donor_labels, probability, generator):
        nothing, all_of_it = (torch.full((2, *labels.shape[1:]), value) for value in (0, 1))
        boxes = cutmix(nothing[:, None], nothing, all_of_it[:, None], all_of_it, probability, self.joint_noise)[1]
        inside = self.own_part(boxes).bool()
        return torch.where(inside[:, None], donors, images), torch.where(inside, donor_labels.long(), labels)


class KnownNoiseNoDecoupling(KnownNoise):
    """θ learns from labelled patches, too."""

    config = replace(nnUNetTrainerAD_NoDecoupling.config, rampup_epochs=0, num_sampling_steps=2)


class KnownNoiseNoDiffusion(KnownNoise):
    """Parts of the network are frozen."""

    config = replace(nnUNetTrainerAD_NoDiffusion.config, rampup_epochs=0)


class NoiselessMeanTeacher(OwnPart, nnUNetTrainerMeanTeacher):
    """The teacher sees what the student sees, but is far from the student."""

    config = replace(ADConfig(), rampup_epochs=0, learning_rate=5e-2)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.bare_network.average.num_iterations.fill_(100)
        with torch.no_grad():
            for parameter in self.bare_network.teacher.parameters():
                parameter.mul_(2)

    def train_step(self, batch: dict) -> dict[str, torch.Tensor]:
        with patch.object(mean_teacher, "_NOISE", 0.0):
            return super().train_step(batch)


class OwnPartCPS(OwnPart, nnUNetTrainerCPS):
    """Has no noise."""

    config = replace(ADConfig(), rampup_epochs=0)


STEPPING = (KnownNoise, KnownNoiseNoDecoupling, KnownNoiseNoDiffusion, NoiselessMeanTeacher, OwnPartCPS)


def make_trainer(root: Path, trainer_class):
    folder = root / "nnUNet_preprocessed" / DATASET
    plans = json.loads((folder / f"{PLANS}.json").read_text()) | {"continue_training": False}
    return trainer_class(plans, "3d_fullres", 0, json.loads((folder / "dataset.json").read_text()), CPU)


def take_steps(trainer) -> dict:
    """Take some steps on a batch of two whose patches differ much, and return all that came out.

    In double precision: by how much float32 rounds differently for one patch than for two depends on the processor.
    """
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(trainer.local_rank)  # the first process's weights are to count
    trainer.initialize()
    trainer.bare_network.double()
    trainer.on_train_epoch_start()
    outputs = []
    for _ in range(NUM_STEPS):
        images = torch.randn((2, 2, 1, 16, 16, 16), generator=generator).double()
        target = torch.randint(3, (2, 1, 16, 16, 16), generator=generator)
        target[1, :, 2:] = 0  # little foreground in the second patch
        joint = {"data": images[0], "unlabeled_data": images[1], "target": target.to(torch.int16)}
        outputs.append(trainer.train_step({name: trainer.own_part(tensor) for name, tensor in joint.items()}))
    return {
        "weights": trainer.bare_network.state_dict(),
        "outputs": outputs,
        "difficulty": trainer.difficulty.state_dict() if isinstance(trainer, nnUNetTrainerAD) else {},
        "batch_size": trainer.batch_size,
    }


LOSSES = {
    KnownNoise: {"loss_denoising", "loss_difficulty", "loss_unlabeled", "class_weights"},
    NoiselessMeanTeacher: {"loss_supervised", "loss_consistency"},
    OwnPartCPS: {"loss_supervised", "loss_crossed"},
}


class Recording(nnUNetTrainerAD_1epoch):
    """Writes down which weights it starts from, which patches it is given and which noise it draws."""

    def on_train_start(self) -> None:
        super().on_train_start()
        self.start = {name: weight.clone() for name, weight in self.bare_network.state_dict().items()}

    def train_step(self, batch: dict) -> dict:
        self.patches = [*getattr(self, "patches", []), batch["unlabeled_data"].sum().item()]
        return super().train_step(batch)

    def _normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        noise = super()._normal(shape)
        self.noise = [*getattr(self, "noise", []), noise.flatten()[0].item()]
        return noise

    def on_train_end(self) -> None:
        super().on_train_end()
        record = {"patches": self.patches, "noise": self.noise, "curves": self.curves, "start": self.start}
        record["weights"] = self.bare_network.state_dict()
        torch.save(record, Path(os.environ["RECORDS"]) / f"{type(self).__name__}_{self.local_rank}.pt")


class Pretrained(Recording):
    """Has a folder and records of its own."""


class Interrupted(Recording):
    """The second process is asked to stop in the first step of the training."""

    def train_step(self, batch: dict) -> dict:
        if self.local_rank == 1 and not self.train_outputs:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().train_step(batch)


class Dying(nnUNetTrainerAD_1epoch):
    """The second process is killed in its first step."""

    def train_step(self, batch: dict) -> dict:
        if self.local_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)


def run_hosts_processes(
    rank: int, folder: Path, trainer_class, go_on: bool = False, pretrained_weights: str | None = None
) -> None:
    """Run what ``nnUNetv2_train -num_gpus 2`` runs in each process, with gloo and the CPU in the place of GPUs."""
    from nnunetv2.run import run_training as host

    load = torch.load
    torch.load = lambda file, map_location=None, **options: load(file, map_location=CPU, **options)
    host.setup_ddp = lambda rank, world_size: start_gloo(folder, f"{trainer_class.__name__} {go_on}", rank, world_size)
    host.get_trainer_from_args = partial(host.get_trainer_from_args, device=CPU)
    host.recursive_find_trainer_class_by_name = lambda name: trainer_class
    torch.cuda.set_device = lambda device: None
    host.run_ddp(
        rank, "500", "3d_fullres", 0, "", PLANS, disable_checkpointing=False, c=go_on, val=False,
        pretrained_weights=pretrained_weights, npz=False, val_with_best=False, world_size=2,
    )  # fmt: skip


def write_down_written_files(file: Path, *folders: str) -> None:
    """Append the path of each file in some folders that this process opens for writing to a file."""

    def hook(event: str, arguments: tuple) -> None:
        if event != "open" or not isinstance(arguments[0], str | os.PathLike):
            return
        path, mode, flags = os.fspath(arguments[0]), *arguments[1:]
        writes = set(mode) & set("wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
        if path.startswith(folders) and writes:
            with file.open("a") as stream:
                stream.write(f"{path}\n")

    sys.addaudithook(hook)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    start_gloo(folder, "arithmetic", rank)
    tensors = [torch.full((3,), float(rank)), torch.tensor([[4.0 * rank]])]
    add_over_processes_(tensors)
    own = torch.tensor([1.0 + rank, 5.0], requires_grad=True)
    total = joint_sum(own)
    (total**2).sum().backward()
    results = {"sums": tensors, "joint_sum": total.detach(), "gradient": own.grad}
    for trainer_class in STEPPING:
        results[trainer_class.__name__] = take_steps(make_trainer(folder, trainer_class))
    torch.save(results, folder / f"results_{rank}.pt")
    distributed.destroy_process_group()

    write_down_written_files(
        folder / f"written_{rank}.txt", f"{folder}/nnUNet_results", f"{folder}/nnUNet_preprocessed"
    )
    run_hosts_processes(rank, folder, Recording)


# ------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def root(planned, tmp_path_factory):
    """The planned dataset, in nnU-Net's variables, and a folder for what the processes leave."""
    root = tmp_path_factory.mktemp("distributed")
    for name in PATHS:
        shutil.copytree(planned / name, root / name)
    with pytest.MonkeyPatch.context() as patch:
        set_paths(patch, root)
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setenv("nnUNet_def_n_proc", "1")  # unlabelled cases are preprocessed in the process itself
        patch.setenv("NNUNET_AD_ITERATIONS", "3")
        patch.setenv("NNUNET_AD_SEED", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("NNUNET_AD_CPU_BF16", "0")
        patch.setenv("RECORDS", str(root))
        yield root


@pytest.fixture(scope="module")
def ranks(root) -> list[dict]:
    """What the two processes found in their steps on parts of a known batch."""
    multiprocessing.spawn(work, (root,), nprocs=2)
    return [torch.load(root / f"results_{rank}.pt") for rank in range(2)]


def records(root: Path, trainer_class) -> list[dict]:
    """What the two processes wrote down in a whole training."""
    return [torch.load(root / f"{trainer_class.__name__}_{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture
def trainings(root, ranks) -> list[dict]:
    return records(root, Recording)


def test_sums_are_over_the_processes_and_gradients_of_the_own_part(ranks):
    for rank, result in enumerate(ranks):
        torch.testing.assert_close(result["sums"], [torch.full((3,), 1.0), torch.tensor([[4.0]])])
        torch.testing.assert_close(result["joint_sum"], torch.tensor([3.0, 10.0]))
        torch.testing.assert_close(result["gradient"], torch.tensor([6.0, 20.0]), msg=str(rank))


@pytest.mark.parametrize("trainer_class", STEPPING, ids=lambda c: c.__name__)
def test_two_processes_equal_one_on_the_joint_batch(root, ranks, trainer_class):
    first, second = (result[trainer_class.__name__] for result in ranks)
    assert (first["batch_size"], second["batch_size"]) == (1, 1)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name

    alone = take_steps(make_trainer(root, trainer_class))
    assert alone["batch_size"] == 2
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    untrained = make_trainer(root, trainer_class)
    torch.manual_seed(0)
    untrained.initialize()
    moved = [(w - alone["weights"][name]).abs().max() for name, w in untrained.network.state_dict().items()]
    assert np.median(moved) > 1e-4  # far more than two processes may differ from one

    for ours, theirs, expected in zip(first["outputs"], second["outputs"], alone["outputs"], strict=True):
        joint = [name for name in expected if name.startswith(("loss", "gradient", "class_weights"))]
        assert LOSSES.get(trainer_class, LOSSES[KnownNoise]) <= set(joint)
        for name in joint:
            torch.testing.assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(theirs[name], expected[name], rtol=1e-4, atol=1e-5)


def test_difficulty_comes_from_the_joint_batch(ranks):
    """The patches differ so much that weights of one process's own patch would differ, too."""
    first, second = (result["KnownNoise"]["difficulty"] for result in ranks)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert first["num_updates"].tolist() == [NUM_STEPS, NUM_STEPS]


def test_processes_draw_other_noise_and_other_patches(trainings):
    first, second = trainings
    assert len(first["patches"]) == len(second["patches"]) == 3
    assert not set(first["patches"]) & set(second["patches"])
    assert not set(first["noise"]) & set(second["noise"])


def test_a_training_of_two_processes_ends_as_one_does(root, trainings):
    first, second = trainings
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    for name in ("loss_unlabeled", "class_weights", "val_dice_psi", "val_dice_theta", "gradient_denoising"):
        np.testing.assert_allclose(first["curves"][name], second["curves"][name], err_msg=name)
    folder = root / "nnUNet_results" / DATASET / f"Recording__{PLANS}__3d_fullres"
    assert (folder / "plans.json").is_file()
    assert (folder / "fold_0" / "checkpoint_final.pth").is_file()
    summary = json.loads((folder / "fold_0" / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 1


def test_the_first_process_preprocesses_writes_and_plots_alone(root, trainings):
    del trainings
    names = [
        {re.sub(r"^\.unfinished_\w{8}_", "", Path(line).name) for line in written.read_text().splitlines()}
        if (written := root / f"written_{rank}.txt").exists()
        else set()
        for rank in range(2)
    ]
    assert {"progress.png", "progress_ad.png", "plans.json", "Made_003.pkl", "summary.json"} <= names[0]
    assert names[1] == set()


@pytest.mark.slow
def test_a_killed_process_ends_the_training_with_a_message(root, ranks):
    start = time.monotonic()
    with pytest.raises(ProcessExitedException, match="process 1 terminated with signal SIGKILL"):
        multiprocessing.spawn(run_hosts_processes, (root, Dying), nprocs=2)
    assert time.monotonic() - start < 300


@pytest.mark.slow
def test_both_processes_start_from_pretrained_weights(root, trainings):
    file = root / "pretrained.pth"
    expected = dict(trainings[0]["weights"])
    torch.save({"network_weights": expected}, file)
    multiprocessing.spawn(run_hosts_processes, (root, Pretrained, False, str(file)), nprocs=2)
    first, second = records(root, Pretrained)
    del expected["average.num_iterations"]  # the average begins anew
    for name, weight in expected.items():
        assert torch.equal(first["start"][name], weight), name
        assert torch.equal(second["start"][name], weight), name
        assert torch.equal(first["weights"][name], second["weights"][name]), name
    assert first["start"]["average.num_iterations"] == 0
    assert any(not torch.equal(first["weights"][name], weight) for name, weight in expected.items())


@pytest.mark.slow
def test_both_processes_stop_when_one_is_asked_to_and_go_on_as_if_nothing_had_been(root, trainings):
    with pytest.raises(ProcessExitedException, match="terminated with exit code 75"):
        multiprocessing.spawn(run_hosts_processes, (root, Interrupted), nprocs=2)
    fold = root / "nnUNet_results" / DATASET / f"Interrupted__{PLANS}__3d_fullres" / "fold_0"
    running_epoch = torch.load(fold / "checkpoint_latest.pth", weights_only=False)["nnunet_ad"]["running_epoch"]
    assert [len(outputs["train"]) for outputs in running_epoch] == [1, 1]

    multiprocessing.spawn(run_hosts_processes, (root, Interrupted, True), nprocs=2)
    for ours, uninterrupted in zip(records(root, Interrupted), trainings, strict=True):
        assert ours["patches"] == uninterrupted["patches"][1:]
        assert json.dumps(ours["curves"]) == json.dumps(uninterrupted["curves"])
        for name, weight in uninterrupted["weights"].items():
            assert torch.equal(ours["weights"][name], weight), name


def test_a_process_computes_on_the_gpu_that_its_start_took(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")  # as a scheduler may leave it to all processes of nnU-Net's -num_gpus
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert own_device(torch.device("cuda")) == torch.device("cuda", 1)
    assert own_device(CPU) == CPU
