"""One encoder, two stems, three decoders, built from nnU-Net plans."""
