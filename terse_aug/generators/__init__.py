"""Foregrounds from a generator of images of which a few samples are annotated, after BigDatasetGAN (Li et al.)."""

from terse_aug.generators.branch import BranchShape, SegmentationBranch
from terse_aug.generators.build import Filters, GeneratedSamples, build_from_generator, remake
from terse_aug.generators.ensemble import BranchEnsemble
from terse_aug.generators.filtering import jensen_shannon, uncertainty
from terse_aug.generators.latents import SampleKey, Truncation, draw_noise
from terse_aug.generators.load import load_generator
from terse_aug.generators.protocol import FeatureGenerator, Rendered, recorded_outputs, weights_digest
from terse_aug.generators.samples import read_annotated, write_samples
from terse_aug.generators.training import AnnotatedSample, BranchSettings, learn_branch

__all__ = [
    "AnnotatedSample",
    "BranchEnsemble",
    "BranchSettings",
    "BranchShape",
    "FeatureGenerator",
    "Filters",
    "GeneratedSamples",
    "Rendered",
    "SampleKey",
    "SegmentationBranch",
    "Truncation",
    "build_from_generator",
    "draw_noise",
    "jensen_shannon",
    "learn_branch",
    "load_generator",
    "read_annotated",
    "recorded_outputs",
    "remake",
    "uncertainty",
    "weights_digest",
    "write_samples",
]
