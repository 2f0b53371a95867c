"""A plan carried to another schedule (resolution, aspect ratio) by rule."""
