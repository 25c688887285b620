"""Series by the folder that they lie in, and what is wrong with them."""

import warnings

import pydicom
import pytest

from nnunet_ad.conversion.dicom.series import find_series
from nnunet_ad.conversion.dicom.volume import read_series
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.testing.dicom_files import PLANTED


def series_below(folder):
    """Return the image series and the masks in a folder and the folders below it."""
    return find_series(path for path in folder.rglob("*") if path.is_file())


def images_below(folder):
    """Return the image series in a folder and the folders below it."""
    return series_below(folder)[0]


def read_only_series(folder):
    (series,) = images_below(folder)
    return read_series(series)


def refused(folder, words):
    """Check that reading the series of a folder fails with one sentence that shows nothing planted.

    Returns:
        The sentence with what is shown only if asked for.
    """
    with pytest.raises(ConversionError, match=words) as caught:
        for series in images_below(folder):
            read_series(series)
    check_message(getattr(caught.value, "public_message", str(caught.value)), folder)
    return str(caught.value)


def check_message(message, folder):
    assert "\n" not in message
    for secret in (*PLANTED.values(), str(folder), "IM0", ".dcm"):
        assert secret not in message, message


def edit(file, **elements):
    dataset = pydicom.dcmread(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in elements.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        dataset.save_as(file)
