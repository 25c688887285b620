"""A hospital's folders of images and masks become an nnU-Net dataset with unlabelled cases.

``options``       what the user asks for
``labels``        ``labels.json``: which value, file, segment or contour is which structure
``names``         which word of a file name says mask, structure or channel
``sources``       finds the cases in a folder
``grid``          the voxel grid of a volume
``images``        one channel of one case
``masks``         label map, binary files, DICOM-SEG or RTSTRUCT of a case as one label map
``findings``      what a check found, in words that may be shown and words that may not
``checks``        checks of one volume
``survey``        reads every case once and checks it
``cohort``        checks across cases
``groups``        patients, domains, folds
``notes``         what is said of decisions about volumes, folds and patients
``mapping``       neutral names, and the file that says which case is whose
``thumbnails``    a slice of a case with its mask
``report``        ``conversion_report.html`` and ``.json``
``convert``       the whole
``command_line``  the command
"""
