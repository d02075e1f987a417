"""Wrappers of a score that steer where samples go, for any sampler: conditions, classifiers, linear measurements."""

from guidance.classifier_free import ClassifierFreeGuidance

__all__ = ["ClassifierFreeGuidance"]
