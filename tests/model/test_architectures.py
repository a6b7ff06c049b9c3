"""Every decoder-only architecture of the installed transformers that can be built tiny: it shares prefixes, or falls back.

Which do is listed here, so that a new version of transformers that moves one of them is seen.
"""

from __future__ import annotations
