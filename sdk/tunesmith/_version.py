"""The one version number of the SDK and the platform."""

__version__ = "0.1.0"
