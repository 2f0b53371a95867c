"""The plans that come with the package, as JSON, and finding them by name or fingerprint."""
