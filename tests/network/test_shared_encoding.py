import pytest
import torch
from torch import nn

from nnunet_ad.network.shared_encoding import SharedEncoding


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 6, 2, stride=2)
        self.unused = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = self.first(x).tanh()
        return [x, self.second(x).tanh()]


@pytest.fixture
def setting():
    torch.manual_seed(0)
    images = torch.randn(2, 1, 4, 4, 4), torch.randn(3, 1, 4, 4, 4)
    return Encoder(), [nn.Conv3d(4, 2, 1), nn.Conv3d(6, 2, 1)], images


def losses(decoders, features):
    """The first decoder sees both stages of the first batch, the second one only the last stage of the other."""
    first, second = features
    up = nn.functional.interpolate(first[1], scale_factor=2)
    return [decoders[0](first[0]).square().mean() + up.square().mean(), 3 * decoders[1](second[1]).square().mean()]


def gradients(module):
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def test_gradients_are_those_of_the_joint_loss(setting):
    encoder, decoders, images = setting
    sum(losses(decoders, [encoder(batch) for batch in images])).backward()
    modules = [encoder, *decoders]
    expected = [gradients(module) for module in modules]
    for module in modules:
        module.zero_grad()
    encoding = SharedEncoding(encoder, *images)
    for loss in losses(decoders, encoding.features):
        loss.backward()
    encoding.backward()
    for module, gradient in zip(modules, expected, strict=True):
        torch.testing.assert_close(gradients(module), gradient)


def test_the_gradient_of_one_batch_is_that_of_its_loss_and_leaves_the_rest_to_do(setting):
    encoder, decoders, images = setting
    used = [p for name, p in encoder.named_parameters() if name != "unused"]
    expected = [torch.autograd.grad(loss, used) for loss in losses(decoders, [encoder(batch) for batch in images])]
    encoding = SharedEncoding(encoder, *images)
    for loss in losses(decoders, encoding.features):
        loss.backward()
    assert all(p.grad is None for p in used)
    for i in range(2):
        torch.testing.assert_close(encoding.gradient(i, list(encoder.parameters())), list(expected[i]))
    encoding.backward()
    torch.testing.assert_close([p.grad for p in used], [a + b for a, b in zip(*expected, strict=True)])


def test_a_decoder_does_not_reach_the_encoder_by_itself(setting):
    encoder, decoders, images = setting
    encoding = SharedEncoding(encoder, *images)
    losses(decoders, encoding.features)[0].backward()
    assert all(p.grad is None for p in encoder.parameters())
