"""What runs where tokens, guidance rows or scales are left out."""
