"""The version, for the package, the mount and the build."""

VERSION = "0.2.0"
