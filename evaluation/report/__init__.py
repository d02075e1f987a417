"""A run as one page of HTML: curves, samples, likelihoods, quality, and whether the training images were memorised."""

from evaluation.report.page import NAME, render, write_report
from evaluation.report.section import Section, Source
from evaluation.report.settings import COMMANDS

__all__ = ["COMMANDS", "NAME", "Section", "Source", "render", "write_report"]
