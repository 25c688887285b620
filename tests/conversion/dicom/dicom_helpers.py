"""Series by the folder that they lie in."""

from nnunet_ad.conversion.dicom.series import find_series


def series_below(folder):
    """Return the image series and the masks in a folder and the folders below it."""
    return find_series(path for path in folder.rglob("*") if path.is_file())


def images_below(folder):
    """Return the image series in a folder and the folders below it."""
    return series_below(folder)[0]
