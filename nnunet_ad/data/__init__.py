"""Unlabelled cases: which they are, how they are preprocessed, how they are loaded beside the labelled ones."""
