"""Launchers for clusters: one file of shell commands per engine, filled in from the flags of `launch.cluster`."""
