"""Distil text-to-image diffusion teachers into students that draw in one to four steps."""

from __future__ import annotations

__version__ = "0.1.0"
