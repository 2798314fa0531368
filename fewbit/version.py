"""The version of this release, in its only place."""

VERSION = "0.1.0"
