"""Every contradiction a plan can hold, found at once."""
