"""Shared by both training scripts: data sets, a small backbone, evaluation."""
