"""What the commands show: HTML pages, figures, tables."""
