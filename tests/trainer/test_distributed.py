import torch
from torch import distributed, multiprocessing

from nnunet_ad.trainer.two_stream import average_over_ranks


def average(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    tensors = [torch.full((3,), float(rank)), torch.tensor([[4.0 * rank]])]
    average_over_ranks(tensors)
    torch.save(tensors, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_gradients_become_their_means_over_the_processes(tmp_path):
    multiprocessing.spawn(average, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), [torch.full((3,), 0.5), torch.tensor([[2.0]])])
