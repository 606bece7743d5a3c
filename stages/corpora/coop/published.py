"""Owns PromptKD's published accuracies in percent: ViT-L/14 teacher, ViT-B/16 student (Li et al., CVPR 2024, arXiv 2403.02781)."""

from __future__ import annotations

from collections.abc import Mapping

#: Table 1, base-to-novel: base, novel, harmonic mean; each the mean of three seeds.
BASE_TO_NOVEL: Mapping[str, tuple[float, float, float]] = {
    "imagenet": (80.83, 74.66, 77.62),
    "caltech101": (98.91, 96.65, 97.77),
    "oxford_pets": (96.30, 98.01, 97.15),
    "stanford_cars": (82.80, 83.37, 83.13),
    "oxford_flowers": (99.42, 82.62, 90.24),
    "food101": (92.43, 93.68, 93.05),
    "fgvc_aircraft": (49.12, 41.81, 45.17),
    "sun397": (83.69, 81.54, 82.60),
    "dtd": (85.84, 71.37, 77.94),
    "eurosat": (97.54, 82.08, 89.14),
    "ucf101": (89.71, 82.27, 86.10),
}

#: Table 2, cross-dataset: accuracy over all classes of the target.
CROSS_DATASET: Mapping[str, float] = {
    "caltech101": 93.61,
    "oxford_pets": 91.59,
    "stanford_cars": 73.93,
    "oxford_flowers": 75.33,
    "food101": 88.84,
    "fgvc_aircraft": 26.24,
    "sun397": 68.57,
    "dtd": 55.08,
    "eurosat": 63.74,
    "ucf101": 76.39,
}
