"""What can be known of the Triton kernels without a GPU: they are compiled ahead of time and read."""
