"""Strong augmentation of both streams (SVDA)."""
