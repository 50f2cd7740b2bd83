"""What both training scripts share: data sets, a small backbone, evaluation."""
