"""Datasets in other layouts become nnU-Net datasets with unlabelled cases."""
