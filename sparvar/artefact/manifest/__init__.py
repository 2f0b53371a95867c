"""The manifest of an artefact: its dataclasses, how it is read, and whether its parts agree."""
