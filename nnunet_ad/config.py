"""Every hyper-parameter of Aggregating & Decoupling, with where it comes from."""

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class ADConfig:
    """Hyper-parameters of the method; the defaults are the paper's unless an attribute says otherwise.

    Equations and tables are those of Wang & Li, NeurIPS 2023. What nnU-Net plans decide (patch size, batch size,
    network width and depth) is not repeated here.

    Attributes:
        num_epochs: Epochs of ``num_iterations_per_epoch`` iterations (nnU-Net's notion of an epoch).
        num_iterations_per_epoch: Training iterations an epoch.
        learning_rate: Initial learning rate of SGD, decayed polynomially by nnU-Net (Table 8).
        labeled_rate: Learning rate of what only labels teach, the decoders ξ and ψ and what of E only denoises, over
            that of E and θ, whose steps μ makes ten times as large. 1 is the paper's; see docs/results.
        momentum: Nesterov momentum of SGD (Table 8).
        weight_decay: L2 penalty of SGD (Table 8).
        max_gradient_norm: The joint gradient norm is clipped to this (nnU-Net's own value).
        max_faults_in_a_row: So many steps in a row whose loss or gradient is not finite end the training.
        num_diffusion_steps: T, length of the diffusion (Eq. 1, Table 7).
        beta_start: First value of the linear noise schedule (Eq. 1).
        beta_end: Last value of the linear noise schedule (Eq. 1).
        label_scale: b, labels are in {-b, b} before noise is added (Eq. 1). Neighbours make smooth labels readable in
            noise until late; the smaller b, the sooner ξ must look at the image. 1 is the paper's; see docs/results.
        shrink_noisy_labels: ξ reads the best linear estimate of y_0, and not y_t, whose noise would drown the image at
            large t. Off is the paper's; see docs/results for what it does.
        shared_stem: The noisy stem shares its image part with the image-only stem. Off, two stems, is the paper's; see
            docs/results.
        common_initialization: The three decoders start from the same parameters, as distillation averages them; off,
            each from its own.
        num_sampling_steps: S, DDIM steps for a pseudo-label. The paper has 10; with shrunk noisy labels pseudo-labels
            of three are as good within the noise on two data sets (docs/benchmarks/ddim_steps.md).
        difficulty_window: τ, updates of a class that its difficulty looks back on (Eqs. 3-5).
        difficulty_exponent: α, exponent of the learning difficulty in the class weight (Eq. 5).
        unsupervised_weight: μ, weight of the unsupervised loss after the ramp-up (Eq. 9).
        rampup_epochs: R, length of the ramp-up of μ; ``None`` is a third of the epochs, 0 is no ramp-up (Eq. 9).
        distillation_momentum: w, share of θ that survives one distillation.
        distillation_follows_learning_rate: Let 1 - w fall with the learning rate; at a fixed w θ is drawn to the
            mean of two decoders until the end, when they hardly change.
        weight_averaging: Mean age, as a share of the iterations so far, of the E and θ that are averaged for validation
            and inference; 0 is the paper's, the weights of the last iteration. See docs/results for what it does.
        num_augmentations: N_aug, operations drawn for each patch (SVDA, Table 7).
        spatial_probability: Probability that rotation or scaling is applied where it was drawn. 0.4, of three in six,
            makes either as frequent as in nnU-Net, one patch in five; 1 is the paper's; see docs/results.
        mirroring: Mirror patches at random, average over mirrored windows in inference; nnU-Net does, the paper not.
        cutmix: Probability that a patch θ learns from has a box of a labelled patch, with its label, pasted into it.
            0 is the paper's; see docs/results for what it does.
        svda: Augment strongly; off is ablation NoSVDA, crops only (Table 6).
        svda_unlabeled: Augment unlabelled patches as strongly as labelled ones, as the paper does; off, they are crops.
        diffusion: Train ξ by denoising; off is ablation NoDiffusion, ξ sees the image only (Table 6).
        difficulty_weighting: Weight classes by difficulty; off is ablation NoDRS, weights of one (Table 6).
        reweighted_sampling: Ensemble by Eq. 7; off is ablation NoRS, a plain sum of two softmaxes (Table 6).
        decoupling: θ learns from unlabelled patches only; off is ablation NoDecoupling, labelled ones, too (appendix).
        recompute_activations: Keep only what goes from stage to stage for the backward pass and compute the rest again:
            less memory, more time, same results.
    """

    num_epochs: int = 300
    num_iterations_per_epoch: int = 250
    learning_rate: float = 1e-2
    labeled_rate: float = 3.0
    momentum: float = 0.9
    weight_decay: float = 3e-5
    max_gradient_norm: float = 12.0
    max_faults_in_a_row: int = 10
    num_diffusion_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    label_scale: float = 0.3
    shrink_noisy_labels: bool = True
    shared_stem: bool = True
    common_initialization: bool = True
    num_sampling_steps: int = 3
    difficulty_window: int = 50
    difficulty_exponent: float = 0.2
    unsupervised_weight: float = 10.0
    rampup_epochs: float | None = None
    distillation_momentum: float = 0.99
    distillation_follows_learning_rate: bool = False
    weight_averaging: float = 0.08
    num_augmentations: int = 3
    spatial_probability: float = 0.4
    mirroring: bool = False
    cutmix: float = 1.0
    svda: bool = True
    svda_unlabeled: bool = True
    diffusion: bool = True
    difficulty_weighting: bool = True
    reweighted_sampling: bool = True
    decoupling: bool = True
    recompute_activations: bool = False


# Table 8. The batch sizes (4, 4, 2, 4) and F = 32 features of that table are for nnU-Net's plans to say.
PRESETS = MappingProxyType(
    {
        "LASeg": ADConfig(learning_rate=1e-2),
        "Synapse": ADConfig(learning_rate=3e-2),
        "MMWHS": ADConfig(learning_rate=5e-3),
        "MnMs": ADConfig(learning_rate=1e-2),
    }
)
