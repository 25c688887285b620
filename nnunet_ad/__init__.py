"""Aggregating & Decoupling (Wang & Li, NeurIPS 2023) as an extension of nnU-Net v2.

Importing this package imports neither torch nor nnU-Net, so that it may be imported when any interpreter starts.
"""

__version__ = "0.1.0"
