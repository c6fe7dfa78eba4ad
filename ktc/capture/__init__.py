"""Capture: a model's forward pass as one fx graph in the kt dialect, without its weights."""

from __future__ import annotations

from ktc.capture.captured import CacheSpec, Captured, allocate_caches, materialise
from ktc.capture.errors import CaptureError
from ktc.capture.language_model import capture_language_model
from ktc.capture.model import meta_model
from ktc.capture.module import capture_module
from ktc.capture.sites import module_sites

__all__ = [
    "CacheSpec",
    "CaptureError",
    "Captured",
    "allocate_caches",
    "capture_language_model",
    "capture_module",
    "materialise",
    "meta_model",
    "module_sites",
]
