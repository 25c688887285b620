"""The sidecar ``nnunet_ad.json``: where a dataset comes from, its protocol, and the domain of each case.

::

    {
      "format_version": 1,
      "converter": {"package": "nnunet_ad", "version": "0.1.0"},
      "provenance": {"name": …, "description": …, "url": …, "citation": …},
      "protocol": {
        "setting": "semi-supervised",
        "num_labeled": 4, "num_unlabeled": 60, "num_val": 16, "num_test": 20,   # of the first fold
        "validation": "kept aside: …" or "the labelled cases themselves (the paper's choice)"
      },
      "domains": {"<case>": "<domain>", …},
      "notes": ["…"]
    }

No patient data and no path of the machine go in here.
"""

from dataclasses import asdict
from typing import Any

import nnunet_ad
from nnunet_ad.conversion.cases import Role
from nnunet_ad.conversion.dataset import Dataset

FORMAT_VERSION = 1
UNSPECIFIED = "unspecified"  # domain of a case of which none is known


def make_sidecar(dataset: Dataset) -> dict[str, Any]:
    """Return the content of ``nnunet_ad.json`` of a dataset."""
    fold = dataset.folds[0]
    return {
        "format_version": FORMAT_VERSION,
        "converter": {"package": nnunet_ad.__name__, "version": nnunet_ad.__version__},
        "provenance": asdict(dataset.provenance),
        "protocol": {
            "setting": dataset.setting,
            "num_labeled": len(fold.train),
            "num_unlabeled": len(fold.unlabeled),
            "num_val": len(fold.val),
            "num_test": dataset.num_cases(Role.TEST),
            "validation": fold.validation,
        },
        "domains": {case.name: case.domain for case in sorted(dataset.cases, key=lambda case: case.name)},
        "notes": list(dataset.notes),
    }
