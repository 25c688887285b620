import pytest
import torch
from dynamic_network_architectures.building_blocks.residual import BottleneckD
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.conv import _ConvNd

from nnunet_ad.distillation import distill_
from nnunet_ad.network.channels_last import COMPILER_OPTIONS
from nnunet_ad.network.from_plans import build_network
from nnunet_ad.network.recomputation import recompute_activations
from nnunet_ad.network.step_embedding import StepEmbedding, StepModulation

RESIDUAL = "ResidualEncoderUNet"
PLAIN = "PlainConvUNet"


def configuration(kind: str = PLAIN, dim: int = 3, norm: str = "InstanceNorm", dropout: str | None = None, **more):
    blocks = {"n_conv_per_stage": [2, 2, 1]} if kind == PLAIN else {"n_blocks_per_stage": [1, 2, 2]}
    module = {"InstanceNorm": "instancenorm", "BatchNorm": "batchnorm"}[norm]
    kwargs = {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "kernel_sizes": [[1, *[3] * (dim - 1)], [3] * dim, [3] * dim],
        "strides": [[1] * dim, [1, *[2] * (dim - 1)], [2] * dim],
        "n_conv_per_stage_decoder": [1, 2],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.{module}.{norm}{dim}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": dropout and f"torch.nn.Dropout{dim}d",
        "dropout_op_kwargs": dropout and {"p": 0.5},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **blocks,
        **more,
    }
    return ConfigurationManager(
        {
            "architecture": {
                "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
                "arch_kwargs": kwargs,
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            }
        }
    )


def spatial(dim: int) -> tuple[int, ...]:
    return (8, 16, 12)[-dim:] if dim == 3 else (16, 12)


@pytest.fixture(params=[(PLAIN, 2), (PLAIN, 3), (RESIDUAL, 2), (RESIDUAL, 3)], ids=lambda p: f"{p[0]}-{p[1]}d")
def network_and_inputs(request):
    kind, dim = request.param
    torch.manual_seed(0)
    network = build_network(configuration(kind, dim), num_input_channels=2, num_classes=3)
    x_l, x_u = torch.randn(2, 2, *spatial(dim)), torch.randn(2, 2, *spatial(dim))
    y_t, t = torch.randn(2, 3, *spatial(dim)), torch.tensor([10, 900])
    return network, x_l, y_t, t, x_u


def has_gradient(module) -> bool:
    return any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_shapes_and_inference_output(network_and_inputs):
    network, x_l, y_t, t, x_u = network_and_inputs
    features = network.encoder(x_u)
    for logits in (network.denoise(x_l, y_t, t), network.difficulty_decoder(features), network(x_u)):
        assert logits.shape == (2, 3, *x_l.shape[2:])
    torch.testing.assert_close(network(x_u), network.unlabeled_decoder(features))
    torch.testing.assert_close(network.denoise(x_l, None, None), network.denoising_decoder(network.encoder(x_l)))


def test_labeled_and_unlabeled_patches_share_a_call_without_touching_each_other(network_and_inputs):
    network, x_l, _, _, x_u = network_and_inputs
    labeled, unlabeled = network.encode(x_l, x_u[:1]).features
    torch.testing.assert_close(network.difficulty_decoder(labeled), network.difficulty_decoder(network.encoder(x_l)))
    torch.testing.assert_close(network.unlabeled_decoder(unlabeled), network(x_u[:1]))


def test_compiled_parts_give_what_they_gave(network_and_inputs):
    network, x_l, y_t, t, x_u = network_and_inputs
    # In float32 the rounding of norms by another formula, through all layers, is as large as a small fault would be.
    network, x_l, y_t, x_u = network.double(), x_l.double(), y_t.double(), x_u.double()

    def outputs():
        return (
            network(x_u),
            network.denoise(x_l, y_t, t),
            network.denoiser(x_l)(y_t, t),
            network.encode(x_l).features[0],
        )

    expected, names = outputs(), list(network.state_dict())
    network.compile_parts(backend="eager")
    torch.testing.assert_close(outputs(), expected)
    assert list(network.state_dict()) == names


@pytest.mark.slow
def test_a_cpu_compiles_the_denoiser_in_two_dimensions():
    torch.manual_seed(0)
    network = build_network(configuration(PLAIN, dim=2), num_input_channels=2, num_classes=3)
    x, y_t, t = torch.randn(2, 2, *spatial(2)), torch.randn(2, 3, *spatial(2)), torch.tensor([10, 900])
    with torch.inference_mode():
        expected = network.denoiser(x)(y_t, t)
        network.compile_denoiser(**COMPILER_OPTIONS)
        torch.testing.assert_close(network.denoiser(x)(y_t, t), expected, rtol=0, atol=1e-4)


def test_the_denoiser_of_an_image_equals_the_stem_on_image_and_noisy_label_together(network_and_inputs):
    network, x_l, y_t, t, _ = network_and_inputs
    stem, label_conv = network.encoder.noisy_stem.conv, network.encoder.label_conv
    together = torch.cat((stem.weight, label_conv.weight), dim=1)
    torch.testing.assert_close(
        stem._conv_forward(torch.cat((x_l, y_t), 1), together, stem.bias),
        network.encoder.image_part(x_l) + label_conv(y_t),
    )
    torch.testing.assert_close(network.denoiser(x_l)(y_t, t), network.denoise(x_l, y_t, t))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (PLAIN, {}),
        (PLAIN, {"norm_op": None, "norm_op_kwargs": None}),
        (RESIDUAL, {}),
        (RESIDUAL, {"block": BottleneckD, "bottleneck_channels": [2, 3, 4]}),
    ],
    ids=["plain", "plain without norm", "residual", "residual with bottlenecks"],
)
@pytest.mark.parametrize("shared", [True, False])
def test_by_a_shared_stem_an_image_without_label_and_step_is_encoded_as_the_image_alone(kind, more, shared):
    network = build_network(configuration(kind, **more), 2, 3, shared_stem=shared)
    encoder, x = network.encoder, torch.randn(1, 2, *spatial(3))
    with torch.no_grad():
        for parameter in encoder.modulations.parameters():
            parameter.zero_()
        encoder.image_stem.conv.weight.add_(torch.randn_like(encoder.image_stem.conv.weight))
    noisy, image = encoder(x, torch.zeros(1, 3, *spatial(3)), torch.tensor([500])), encoder(x)
    assert all(torch.equal(a, b) for a, b in zip(noisy, image, strict=True)) is shared


def test_a_separate_stem_learns_from_the_denoising_flow_only():
    network = build_network(configuration(), 2, 3, shared_stem=False)
    x = torch.randn(1, 2, *spatial(3))
    network(x).square().mean().backward()
    assert not has_gradient(network.encoder.separate_stem)
    network.zero_grad(set_to_none=True)
    network.denoise(x, torch.randn(1, 3, *spatial(3)), torch.tensor([500])).square().mean().backward()
    assert has_gradient(network.encoder.separate_stem)
    assert not has_gradient(network.encoder.image_stem)
    assert network.encoder.separate_stem in network.encoder.denoising_parts


@pytest.mark.parametrize("dropout", [None, "Dropout3d"])
def test_the_network_knows_whether_it_drops_out(dropout):
    assert build_network(configuration(dropout=dropout), 1, 3).has_dropout is bool(dropout)


def test_the_denoising_flow_reaches_only_encoder_and_its_decoder(network_and_inputs):
    network, x_l, y_t, t, _ = network_and_inputs
    network.denoise(x_l, y_t, t).square().mean().backward()
    assert has_gradient(network.encoder.label_conv)
    assert has_gradient(network.encoder.step_embedding)
    assert has_gradient(network.encoder.image_encoder)
    assert has_gradient(network.denoising_decoder)
    assert not has_gradient(network.difficulty_decoder)
    assert not has_gradient(network.unlabeled_decoder)


def test_the_difficulty_flow_reaches_only_encoder_and_its_decoder(network_and_inputs):
    network, x_l, *_, x_u = network_and_inputs
    encoding = network.encode(x_l, x_u)
    network.difficulty_decoder(encoding.features[0]).square().mean().backward()
    encoding.backward()
    assert has_gradient(network.encoder)
    assert not has_gradient(network.encoder.label_conv)
    assert not has_gradient(network.encoder.step_embedding)
    assert has_gradient(network.difficulty_decoder)
    assert not has_gradient(network.denoising_decoder)
    assert not has_gradient(network.unlabeled_decoder)


def test_the_unlabeled_flow_reaches_only_encoder_and_its_decoder(network_and_inputs):
    network, x_l, *_, x_u = network_and_inputs
    encoding = network.encode(x_l, x_u)
    network.unlabeled_decoder(encoding.features[1]).square().mean().backward()
    encoding.backward()
    assert has_gradient(network.encoder)
    assert not has_gradient(network.encoder.label_conv)
    assert has_gradient(network.unlabeled_decoder)
    assert not has_gradient(network.denoising_decoder)
    assert not has_gradient(network.difficulty_decoder)


def test_logits_away_from_the_border_change_with_the_step(network_and_inputs):
    """A constant in front of convolution and instance norm would change the border only."""
    network, x_l, y_t, _, _ = network_and_inputs
    network.eval()
    inner = (slice(None), slice(None), *[slice(s // 2 - 1, s // 2 + 1) for s in x_l.shape[2:]])
    early, late = (network.denoise(x_l, y_t, torch.tensor([t, t]))[inner] for t in (5, 995))
    scale = early.abs().mean()
    assert (early - late).abs().mean() > 0.01 * scale


def test_each_sample_is_conditioned_on_its_own_step(network_and_inputs):
    network, x_l, y_t, t, _ = network_and_inputs
    network.eval()
    both = network.denoise(x_l, y_t, t)
    for i in range(2):
        torch.testing.assert_close(network.denoise(x_l[i : i + 1], y_t[i : i + 1], t[i : i + 1])[0], both[i])


def test_decoders_start_equal_and_all_of_them_takes_part_in_distillation(network_and_inputs):
    network, *_ = network_and_inputs
    decoders = [network.denoising_decoder, network.difficulty_decoder, network.unlabeled_decoder]
    for parameters in zip(*(d.parameters() for d in decoders), strict=True):
        assert parameters[0] is not parameters[1]
        torch.testing.assert_close(parameters[0], parameters[1])
        torch.testing.assert_close(parameters[0], parameters[2])
    with torch.no_grad():
        for p in [*decoders[0].parameters(), *decoders[1].parameters()]:
            p.fill_(1.0)
    distill_(decoders[2], decoders[0], decoders[1], momentum=0.0)
    assert all((p == 1).all() for p in decoders[2].parameters())


def test_the_image_flow_is_the_hosts_encoder(network_and_inputs):
    network, x_l, *_ = network_and_inputs
    for ours, host in zip(network.encoder(x_l), network.encoder.image_encoder(x_l), strict=True):
        torch.testing.assert_close(ours, host)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
def test_the_noisy_flow_passes_the_image_stem_only_where_it_is_shared(kind, shared):
    network = build_network(configuration(kind), 2, 3, shared_stem=shared)
    inputs = torch.randn(1, 2, *spatial(3)), torch.randn(1, 3, *spatial(3)), torch.tensor([500])
    before = network.denoise(*inputs)
    stem = getattr(network.encoder.image_encoder, "stem", None) or network.encoder.image_encoder.stages[0][0].convs[0]
    with torch.no_grad():
        for p in stem.parameters():
            p.zero_()
    assert torch.allclose(network.denoise(*inputs), before) is not shared


def kept_and_gradients(network, x_l, y_t, t, x_u):
    """Return the bytes kept for the backward passes of a step and all gradients."""
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    network.zero_grad()
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        logits = [network.denoise(x_l, y_t, t)]
        encoding = network.encode(x_l, x_u)
        logits.append(network.difficulty_decoder(encoding.features[0]))
        logits.append(network.unlabeled_decoder(encoding.features[1]))
    sum(each.square().mean() for each in logits).backward()
    encoding.backward()
    return kept, [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
@pytest.mark.parametrize("dropout", [None, "Dropout3d"])
def test_recomputed_activations_give_the_same_gradients_and_keep_less(kind, dropout):
    settings = configuration(kind, dropout=dropout)
    if dropout:
        settings.network_arch_init_kwargs["dropout_op_kwargs"]["inplace"] = True
    torch.manual_seed(0)
    network = build_network(settings, num_input_channels=2, num_classes=3)
    x_l, x_u, y_t = (torch.randn(2, c, *spatial(3)) for c in (2, 2, 3))
    inputs = x_l, y_t, torch.tensor([10, 900]), x_u
    kept, gradients = kept_and_gradients(network, *inputs)
    recompute_activations(network)
    kept_then, gradients_then = kept_and_gradients(network, *inputs)
    assert kept_then < 0.5 * kept
    for then, before in zip(gradients_then, gradients, strict=True):
        torch.testing.assert_close(then, before)


def test_recomputation_leaves_prediction_alone(network_and_inputs):
    network, x_l, y_t, t, _ = network_and_inputs
    network.eval()
    with torch.inference_mode():
        before = network(x_l), network.denoiser(x_l)(y_t, t)
        recompute_activations(network)
        torch.testing.assert_close((network(x_l), network.denoiser(x_l)(y_t, t)), before)


def test_batch_normalisation_is_refused():
    with pytest.raises(ValueError, match="instance normalisation"):
        build_network(configuration(norm="BatchNorm"), 1, 2)


@pytest.mark.parametrize("kind", [PLAIN, RESIDUAL])
def test_running_statistics_are_refused(kind):
    plans = configuration(kind)
    plans.network_arch_init_kwargs["norm_op_kwargs"]["track_running_stats"] = True
    with pytest.raises(ValueError, match="use plans with instance normalisation without running statistics"):
        build_network(plans, 1, 2)


def test_a_modulation_scales_and_shifts_each_channel():
    modulation = StepModulation(4, 2)
    nn.init.zeros_(modulation.linear.weight)
    modulation.linear.bias.data = torch.tensor([0.5, -1.0, 3.0, 4.0])
    expected = torch.tensor([1.5 * 2 + 3, 0 * 2 + 4]).view(1, 2, 1, 1)
    torch.testing.assert_close(modulation(torch.full((1, 2, 3, 3), 2.0), torch.ones(1, 4)), expected.expand(1, 2, 3, 3))


def test_step_embedding_tells_all_steps_apart():
    torch.manual_seed(0)
    embedding = StepEmbedding(128)(torch.arange(1000))
    distance = torch.cdist(embedding, embedding) + torch.eye(1000)
    assert embedding.shape == (1000, 128)
    assert distance.min() > 1e-4


def test_a_nonlinearity_in_front_of_the_normalisation_is_refused():
    with pytest.raises(ValueError, match="nonlin_first"):
        build_network(configuration(nonlin_first=True), 1, 3)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("shared_stem", [True, False])
@pytest.mark.parametrize(("kind", "dim"), [(PLAIN, 2), (PLAIN, 3), (RESIDUAL, 2), (RESIDUAL, 3)])
def test_a_gpu_convolves_channels_last_from_the_first_layer_on(
    kind, dim, shared_stem, num_channels, compiled, monkeypatch
):
    """By tensors without values, which know their strides; channels first would cost two conversions a convolution."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    last = {2: torch.channels_last, 3: torch.channels_last_3d}[dim]
    convolved = []

    def note(conv, inputs, output):
        convolved.append(all(x.is_contiguous(memory_format=last) for x in (*inputs, output)))

    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"), torch.autocast("cuda"):
        network = build_network(configuration(kind, dim), num_channels, num_classes=3, shared_stem=shared_stem)
        for name, module in network.named_modules():
            # A residual block's shortcut is pooled at first, and torch pools volumes into channels first.
            if isinstance(module, _ConvNd) and "skip" not in name:
                module.register_forward_hook(note)
        x, y_t, t = torch.empty(2, num_channels, *spatial(dim)), torch.empty(2, 3, *spatial(dim)), torch.tensor([1, 9])
        network(x)
        network.denoise(x, y_t, t)
        network.denoiser(x)(y_t, t)
        network.encode(x, x)
    assert len(convolved) > 30 and all(convolved)
