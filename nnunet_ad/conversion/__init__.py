"""Datasets in other layouts become nnU-Net datasets with unlabelled cases.

A converter describes its dataset, and the shared parts write it:

``errors``        the one exception that means "the user's input or setting is wrong"
``cases``         a case: its name, its role, its domain, and how its volumes are read
``case_files``    finding the files of a benchmark's cases
``volume_files``  whether a NIfTI, NRRD or MHA file is whole, and the volumes in it
``volumes``       reading volumes, and checking them
``frames``        reading single volumes of 4-D files
``folds``         the public split lists, the choice of labelled and kept-aside cases, folds
``dataset``       the whole dataset, and the files that it consists of
``sidecar``       ``nnunet_ad.json``: provenance, protocol, domain of each case
``finished_cases``  the cases of an unfinished dataset that a killed run finished
``writer``        writes a dataset completely or not at all
``command_line``  the options that all benchmark converters share, progress, errors as one line
``laseg``, ``synapse``, ``mmwhs``, ``mnms``   one module a benchmark
``dicom``         DICOM series, DICOM-SEG and RTSTRUCT
``hospital``      a hospital's own folders of images and masks
"""
