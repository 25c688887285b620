"""Every random number of a training, derived from its seed and from the number of the iteration.

No random state is carried from one iteration to the next, so none has to be saved, and what workers had prepared when a
training ended does not matter: iteration i draws the same numbers whenever and by whichever process it is computed.
"""

import os
import random
import secrets
from enum import IntEnum

import numpy as np
import torch
from torch import distributed

from nnunet_ad.trainer.environment import integer_from_environment

SEED_VARIABLE = "NNUNET_AD_SEED"


class Stream(IntEnum):
    """What draws random numbers; each has a sequence of its own."""

    WEIGHTS = 0
    TRAINING_BATCH = 1
    TRAINING_STEP = 2
    VALIDATION_BATCH = 3
    VALIDATION_STEP = 4
    SNAPSHOT = 5


def choose_seed() -> int:
    """Return what ``NNUNET_AD_SEED`` says, or else a number drawn now, the same in all ranks.

    Raises:
        ValueError: If the variable holds something else than a whole number of at least 0.
    """
    seed = integer_from_environment(SEED_VARIABLE, minimum=0)
    if seed is None:
        seed = secrets.randbelow(2**31)
    if distributed.is_available() and distributed.is_initialized():
        agreed = [seed]
        distributed.broadcast_object_list(agreed)
        seed = agreed[0]
    return seed


def is_given() -> bool:
    """Return whether the user set a seed."""
    return SEED_VARIABLE in os.environ


def seed_everything(seed: int, rank: int, stream: Stream, number: int) -> int:
    """Seed Python, numpy and torch for one batch or step of a stream.

    Args:
        seed: Of the training.
        rank: Of the process, in distributed training.
        stream: What draws.
        number: Of the iteration, counted over all epochs; of a snapshot, its epoch.

    Returns:
        A seed for a generator of one's own.
    """
    states = np.random.SeedSequence((seed, rank, stream, number)).generate_state(4, np.uint64)
    random.seed(int(states[0]))
    np.random.seed(int(states[1] >> 32))
    torch.manual_seed(int(states[2] >> 1))
    return int(states[3] >> 1)
