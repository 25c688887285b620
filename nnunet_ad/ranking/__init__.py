"""Which unlabelled case to annotate next: the one on which the three decoders disagree most."""
