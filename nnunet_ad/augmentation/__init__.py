"""Strong augmentation of both streams (SVDA), and CutMix of unlabelled patches."""
