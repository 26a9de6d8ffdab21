"""What other splatting projects import, on this rasterizer: `gsplat`, `diff_gaussian_rasterization`,
`simple_knn`; and `install`, which puts them where those projects look. Needs torch, numpy and the extension.
"""

from .install import install

__all__ = ["install"]
