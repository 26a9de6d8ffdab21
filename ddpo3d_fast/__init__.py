"""ddpo3d-fast: text to 3D Gaussians. Importing the package itself loads nothing: see generate and kernels."""

__version__ = "0.1.0"
