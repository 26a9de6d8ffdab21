"""Many runs side by side, on Ray: from a list of prompts to their folders and a summary."""

from ddpo3d_fast.batch.command import batch

__all__ = ["batch"]
