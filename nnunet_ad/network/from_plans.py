"""The network of any nnU-Net configuration."""

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ad.network.channels_last import fast_norm
from nnunet_ad.network.network import ADNetwork
from nnunet_ad.regions import as_classes


def build_network(
    configuration: ConfigurationManager,
    num_input_channels: int,
    num_classes: int,
    shared_stem: bool = True,
    averaging: float = 0.0,
) -> ADNetwork:
    """Build the network with the channels, strides, kernels, blocks, norm and nonlinearity of a configuration.

    Args:
        configuration: Any configuration of nnU-Net plans (2d, 3d_lowres, 3d_fullres; PlainConv or ResidualEncoder).
        num_input_channels: C.
        num_classes: K.
        shared_stem: See :class:`~nnunet_ad.network.encoder.ADEncoder`.
        averaging: See :class:`~nnunet_ad.network.network.ADNetwork`.

    Raises:
        ValueError: If the plans name another architecture or normalise over the batch or by running statistics.
    """
    arch_kwargs = dict(configuration.network_arch_init_kwargs)
    arch_kwargs["norm_op"] = fast_norm(arch_kwargs.get("norm_op"))
    host = _host_network(configuration, arch_kwargs, num_input_channels, num_classes)
    num_convs = arch_kwargs["n_conv_per_stage_decoder"]
    if isinstance(num_convs, int):
        num_convs = [num_convs] * (arch_kwargs["n_stages"] - 1)
    return ADNetwork(getattr(host, "encoder", host), num_classes, num_convs, shared_stem, averaging)


def network_of_plans(
    plans: dict, dataset_json: dict, configuration: str, shared_stem: bool = True, averaging: float = 0.0
) -> ADNetwork:
    """As :func:`build_network`, for a configuration in the contents of a plans file and of dataset.json.

    Raises:
        ValueError: As for :func:`build_network`.
    """
    chosen, num_channels, num_classes = _sizes(plans, dataset_json, configuration)
    return build_network(chosen, num_channels, num_classes, shared_stem, averaging)


def stock_network_of_plans(plans: dict, dataset_json: dict, configuration: str) -> nn.Module:
    """Build the network that nnU-Net's own trainer predicts with, from the contents of plans and dataset.json."""
    chosen, num_channels, num_classes = _sizes(plans, dataset_json, configuration)
    return _host_network(chosen, chosen.network_arch_init_kwargs, num_channels, num_classes)


def _host_network(
    configuration: ConfigurationManager, arch_kwargs: dict, num_input_channels: int, num_classes: int
) -> nn.Module:
    return get_network_from_plans(
        configuration.network_arch_class_name,
        arch_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        num_input_channels,
        num_classes,
        allow_init=True,
        deep_supervision=False,
    )


def _sizes(plans: dict, dataset_json: dict, configuration: str) -> tuple[ConfigurationManager, int, int]:
    """Return the configuration and the numbers of channels and classes; regions are trained as classes."""
    manager = PlansManager(plans)
    chosen = manager.get_configuration(configuration)
    num_channels = determine_num_input_channels(manager, chosen, dataset_json)
    return chosen, num_channels, manager.get_label_manager(as_classes(dataset_json)).num_segmentation_heads
