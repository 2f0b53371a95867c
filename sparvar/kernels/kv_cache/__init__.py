"""Growing a key or value cache in place, with the meaning of `torch.cat`."""
