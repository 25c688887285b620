import matplotlib
import pytest
import torch

from nnunet_ad.trainer.curves import append, plot
from nnunet_ad.trainer.measures import Overlap, agreement, dice_by_t, joint_norm, overlap
from nnunet_ad.trainer.precision import CPU_BF16_VARIABLE, cpu_computes_bf16, forward_precision


def test_overlap_counts_each_sample_and_class():
    prediction = torch.tensor([[[0, 1, 1, 2]], [[0, 0, 0, 0]]])
    target = torch.tensor([[[0, 1, 0, 2]], [[0, 0, 0, 1]]])
    counts = overlap(prediction, target, 4)
    assert counts.intersection.tolist() == [[1, 1, 1, 0], [3, 0, 0, 0]]
    assert counts.total.tolist() == [[3, 3, 2, 0], [7, 1, 0, 0]]
    batch = counts.over_batch()
    torch.testing.assert_close(batch.dice(), torch.tensor([8 / 10, 2 / 4, 1.0, 0.0]))
    assert batch.present().tolist() == [True, True, True, False]


def test_overlap_leaves_out_ignored_voxels():
    prediction, target = torch.tensor([[[1, 1, 0]]]), torch.tensor([[[1, 7, 7]]])
    counts = overlap(prediction, target, 2, ignore_label=7)
    assert counts.intersection.tolist() == [[0, 1]]
    assert counts.total.tolist() == [[0, 2]]


def test_dice_goes_to_the_quintile_of_its_step():
    samples = Overlap(
        torch.tensor([[9.0, 2, 0], [9, 0, 1], [9, 0, 0]]), torch.tensor([[18.0, 4, 2], [18, 0, 4], [18, 0, 0]])
    )
    binned = dice_by_t(samples, torch.tensor([199, 200, 999]), 1000)
    torch.testing.assert_close(binned["dice_by_t_sums"], torch.tensor([0.5, 0.5, 0, 0, 0]))
    assert binned["dice_by_t_counts"].tolist() == [1, 1, 0, 0, 0]  # a sample without foreground counts nowhere
    assert dice_by_t(samples, None, 1000)["dice_by_t_counts"].tolist() == [0] * 5


def test_agreement_is_a_share_of_the_foreground():
    first, second = torch.tensor([0, 1, 1, 2, 0]), torch.tensor([0, 1, 2, 0, 0])
    assert agreement(first, second) == pytest.approx(1 / 3)
    assert agreement(torch.zeros(4), torch.zeros(4)) == 1


def test_the_joint_norm_is_that_of_all_elements():
    assert joint_norm([torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]) == pytest.approx(5)
    assert joint_norm([]) == 0


def test_curves_of_one_epoch_and_with_gaps_are_drawn(tmp_path):
    curves: dict = {}
    append(curves, mu=0.1, class_weights=[1.0, 0.5], dice_by_t=[float("nan")] * 5, val_dice_theta=float("nan"))
    plot(curves, tmp_path / "a.png")
    append(curves, mu=0.2, class_weights=[1.0, 0.7], dice_by_t=[0.5, float("nan"), 0, 0, 1], val_dice_theta=0.3)
    plot(curves, tmp_path / "b.png")
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 2


def test_bfloat16_on_the_cpu_can_be_turned_off(monkeypatch):
    monkeypatch.setenv(CPU_BF16_VARIABLE, "0")
    assert not cpu_computes_bf16()
    with forward_precision(torch.device("cpu")):
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.skipif(not cpu_computes_bf16(), reason="this processor has no bfloat16 arithmetic")
def test_forward_passes_on_the_cpu_are_bfloat16():
    with forward_precision(torch.device("cpu")):
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16


def test_pictures_do_not_depend_on_what_was_drawn_before(tmp_path):
    curves: dict = {}
    append(curves, mu=0.1, val_dice_theta=0.2)
    plot(curves, tmp_path / "before.png")
    with matplotlib.rc_context({"font.size": 40, "xtick.labelsize": 40}):
        plot(curves, tmp_path / "after.png")
    assert (tmp_path / "before.png").read_bytes() == (tmp_path / "after.png").read_bytes()
