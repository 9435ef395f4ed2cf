"""The version, in the one place that the package, the mount and the build read it from."""

VERSION = "0.2.0"
