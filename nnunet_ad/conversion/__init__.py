"""Datasets in other layouts become nnU-Net datasets with unlabelled cases.

A converter describes its dataset, and the shared parts write it:

``errors``        the one exception that means "the user's input or setting is wrong"
``cases``         a case: its name, its role, its domain, and how its volumes are read
``volumes``       reading volumes, and checking them
``folds``         the public split lists, the choice of labelled and kept-aside cases, folds
``dataset``       the whole dataset, and the files that it consists of
``sidecar``       ``nnunet_ad.json``: provenance, protocol, domain of each case
``writer``        writes a dataset completely or not at all
``command_line``  the options that all converters share, progress, errors as one line
``laseg``, …      one module a benchmark
"""
