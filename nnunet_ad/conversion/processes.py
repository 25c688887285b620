"""The processes among which a conversion shares its cases, and what SimpleITK may do in each of them."""

import SimpleITK as sitk

from nnunet_ad.parallel import Workers


def conversion_workers(processes: int | None) -> Workers:
    """Return the processes for a conversion.

    Args:
        processes: At most how many, with this one; None for one a core, at most eight.
    """
    return Workers(processes, prepare=_prepare)


def hide_library_warnings() -> None:
    """Keep SimpleITK from printing: its words name files, and would break the progress bar."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)


def _prepare() -> None:
    hide_library_warnings()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the cores are busy with other cases
